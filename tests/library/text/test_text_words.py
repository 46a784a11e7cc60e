"""The words of texts and their vectors."""

import pytest
import torch
from torch.testing import assert_close

from recsys_lib.text import TextEncoder, TextWords

TEXTS = ["Tokyo Story, a slow drama", "", "Speed"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(device="cpu", cache=False)


def test_words_are_the_encoders_tokens(encoder) -> None:
    words = TextWords.of(TEXTS, encoder)
    assert words.named(0) == ["tokyo", "story", ",", "a", "slow", "drama"]
    assert words.named(1) == []
    assert words.named(2) == ["speed"]
    assert len(words) == 3
    table = encoder.model.get_input_embeddings().weight
    ids = encoder.tokenizer.convert_tokens_to_ids(words.named(0))
    assert_close(words.vectors[words.rows[0]], table[ids].detach())
    # A word has one vector, however often it stands.
    twice = TextWords.of(["story story", "a story"], encoder)
    assert len(twice.vectors) == 2
    assert twice.rows[0, 0] == twice.rows[0, 1] == twice.rows[1, 1]


def test_contextual_words_are_the_last_layers(encoder) -> None:
    words = TextWords.of(["story story", *TEXTS], encoder, contextual=True)
    assert words.rows[0, 0] != words.rows[0, 1]
    batch = encoder.tokenize([TEXTS[0]])
    hidden = encoder.model(**batch).last_hidden_state[0, 1:-1].detach()  # (W, d)
    assert_close(words.vectors[words.rows[1, :6]], hidden, rtol=1e-4, atol=1e-5)
    assert words.named(1) == TextWords.of(TEXTS, encoder).named(0)


def test_a_long_text_loses_its_end(encoder) -> None:
    words = TextWords.of(TEXTS, encoder, max_words=2)
    assert words.named(0) == ["tokyo", "story"]
    assert words.rows.shape == (3, 2)


def test_the_librarys_own_encoder_gives_the_same(encoder) -> None:
    own = TextEncoder(device="cpu", cache=False, own=True)
    for contextual in (False, True):
        ours, theirs = (TextWords.of(TEXTS, e, contextual=contextual) for e in (own, encoder))
        assert_close(ours.vectors, theirs.vectors, rtol=1e-3, atol=1e-4)


def test_fewer_features_keep_the_distances_that_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(20, 2, generator=generator) @ torch.randn(2, 6, generator=generator) + 3.0  # a plane
    words = TextWords(torch.arange(20)[:, None], flat, tuple(map(str, range(20))))
    small = words.reduced(2)
    assert small.vectors.shape == (20, 2)
    assert_close(torch.cdist(small.vectors, small.vectors), torch.cdist(flat, flat), rtol=1e-3, atol=1e-3)
    assert small.vectors[:, 0].var() > small.vectors[:, 1].var()
    assert (small.names, small.rows is words.rows) == (words.names, True)
    assert_close(words.reduced(1).vectors, small.vectors[:, :1])
    with pytest.raises(ValueError, match="dim must be 1 to 6, got 7"):
        words.reduced(7)


def test_what_does_not_fit_is_refused(encoder) -> None:
    with pytest.raises(ValueError, match="point into the 2 vectors"):
        TextWords(torch.tensor([[0, 2]]), torch.ones(2, 3))
    with pytest.raises(ValueError, match="whole numbers"):
        TextWords(torch.ones(1, 1), torch.ones(2, 3))
    with pytest.raises(ValueError, match="vector 1 is not"):
        TextWords(torch.tensor([[0]]), torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match="2 vectors, but 1 names"):
        TextWords(torch.tensor([[0]]), torch.ones(2, 3), ("a",))
    with pytest.raises(ValueError, match="no texts"):
        TextWords.of([], encoder)
    with pytest.raises(TypeError):
        TextWords.of("one text", encoder)
