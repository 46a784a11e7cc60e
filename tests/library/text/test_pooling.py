"""From the vectors of a text's tokens to one vector."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import ANY_MODEL

from recsys_lib.text import TextEncoder, pool

close = torch.testing.assert_close


@ANY_MODEL
def test_pooling_is_what_it_says(models: dict[str, Path], kind: str) -> None:
    """Against the model itself, called on one text without padding."""
    sentence = "w1 w2 w3"
    for pooling, choose in {
        "mean": lambda h: h.mean(0),
        "cls": lambda h: h[0],
        "last": lambda h: h[-1],
    }.items():
        encoder = TextEncoder(models[kind], pooling, normalize=False, device="cpu", cache=False)
        with torch.no_grad():
            hidden = encoder.model(**encoder.tokenize([sentence])).last_hidden_state[0]
        vectors = encoder.encode([sentence, "w4 " * 9])
        close(vectors[0], choose(hidden), atol=1e-5, rtol=0)
        close(encoder.encode([sentence])[0], choose(hidden), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    how=st.sampled_from(["mean", "cls", "last"]),
    seed=st.integers(0, 1000),
)
def test_pool_minds_no_padding_on_either_side(lengths: list[int], how: str, seed: int) -> None:
    tokens = [torch.randn(n, 3, generator=torch.Generator().manual_seed(seed + n)) for n in lengths]
    choose = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}[how]
    expected = torch.stack([choose(h) if len(h) else torch.zeros(3) for h in tokens])
    for left in (False, True):
        hidden, present = torch.full((len(lengths), 7, 3), math.nan), torch.zeros(len(lengths), 7)
        for row, h in enumerate(tokens):
            where = slice(7 - len(h), 7) if left else slice(0, len(h))
            hidden[row, where], present[row, where] = h, 1
        close(pool(hidden, present, how), expected)
        close(pool(hidden, present.bool(), how), expected)


def test_pool_computes_in_float32_at_least_and_on_the_given_device() -> None:
    hidden = torch.full((1, 3000, 2), 100.0, dtype=torch.float16)
    close(pool(hidden, torch.ones(1, 3000)), torch.full((1, 2), 100.0))
    assert pool(hidden.double(), torch.ones(1, 3000)).dtype == torch.float64
    for how in ("mean", "cls", "last"):
        assert pool(hidden.to("meta"), torch.ones(1, 3000, device="meta"), how).device.type == "meta"
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3000, 2\)"):
        pool(hidden, torch.ones(1, 2))
    with pytest.raises(ValueError, match="'max'"):
        pool(hidden, torch.ones(1, 3000), "max")
