"""The explorer of attention weights: what it puts on the page, and what it refuses."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from test_layers import loaded_by

from recsys_lib.attention import TransformerEncoder
from recsys_lib.chapter.explorer import AttentionExplorer

TOKENS = [["[CLS]", "toy", "[SEP]"], ["[CLS]", "a", "b", "[SEP]"]]


def weights(n, n_layers=2, n_heads=3, seed=0):
    """Rows that sum to one, (L, H, n, n)."""
    return np.random.default_rng(seed).dirichlet(np.ones(n), (n_layers, n_heads, n))


def explorer(**changes):
    options = {"titles": ["Toy", "A b"], "tokens": TOKENS, "weights": [weights(3), weights(4)]} | changes
    return AttentionExplorer(**options)


def data_of(page):
    """The data as the page's script reads them."""
    found = re.search(r'<script type="application/json" id="[a-z0-9-]+-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_the_page_holds_the_weights_in_the_order_that_its_script_reads():
    given = [weights(3), weights(4, seed=1)]
    data = data_of(explorer(weights=given).to_html())
    assert (data["layers"], data["heads"]) == (2, 3)
    for text, own, w in zip(data["texts"], TOKENS, given, strict=True):
        assert text["tokens"] == own
        n = len(own)
        raw = base64.b64decode(text["w"])
        assert len(raw) == 2 * 3 * n * n
        for layer, head, i, j in np.ndindex(w.shape):
            shown = raw[(layer * data["heads"] + head) * n * n + i * n + j] / 200  # as `draw` computes it
            assert shown == pytest.approx(w[layer, head, i, j], abs=1 / 400 + 1e-9)


def test_a_trace_can_be_shown():
    encoder = TransformerEncoder(5, 8, 2, 4).eval()
    w = encoder.trace(torch.tensor([[0, 1, 2]])).weights[:, 0]  # (2, 4, 3, 3)
    shown = AttentionExplorer(["Toy"], [TOKENS[0]], [w])
    assert repr(shown) == "AttentionExplorer: 1 texts, 2 layers, 4 heads"
    raw = base64.b64decode(data_of(shown._repr_html_())["texts"][0]["w"])
    assert list(raw) == (200 * w).round().int().flatten().tolist()


def test_the_ends_of_the_scale_are_kept():
    w = np.zeros((1, 1, 2, 2))
    w[0, 0, :, 1] = 1.0000001  # what a float32 softmax may give
    assert base64.b64decode(explorer_of(w).data["texts"][0]["w"]) == bytes([0, 200, 0, 200])


def explorer_of(w):
    return AttentionExplorer(["x"], [["a"] * w.shape[-1]], [w])


def test_no_text_breaks_out_of_its_place():
    nasty = "</script><!--<script>alert(1)</script>&@NAME@"
    page = explorer(
        titles=[nasty, "B"],
        tokens=[[nasty, "toy", "[SEP]"], TOKENS[1]],
        presets={nasty: (0, 0)},
        caption=nasty,
        go_to=nasty,
    ).to_html()
    assert nasty not in page
    assert "<!--" not in page
    data = data_of(page)
    assert data["texts"][0]["title"] == data["texts"][0]["tokens"][0] == data["presets"][0][0] == nasty
    assert page.count("<script") == page.count("</script>") == 2


def test_two_explorers_stand_on_one_page():
    ids = [set(re.findall(r'\bid="([^"]+)"', explorer(name=name).to_html())) for name in ("a", "b-2")]
    assert len(ids[0]) == len(ids[1]) > 5
    assert not ids[0] & ids[1]
    assert "fig-a-explorer" in ids[0]


def test_nothing_is_asked_of_another_host():
    assert not re.findall(r"(?:src|href|url\()", explorer().to_html())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titles": [], "tokens": [], "weights": []}, "one or more texts"),
        ({"titles": ["Toy"]}, "1 titles, 2 lists of tokens, 2 arrays"),
        ({"weights": [weights(3), weights(3)]}, "'A b': the weights have the shape (2, 3, 3, 3)"),
        ({"weights": [weights(3), weights(4, n_heads=2)]}, "'A b': the weights have the shape (2, 2, 4, 4)"),
        ({"weights": [weights(3)[0], weights(4)]}, "'Toy': the weights have the shape (3, 3, 3)"),
        ({"weights": [-weights(3), weights(4)]}, "'Toy': a weight is not from 0 to 1"),
        ({"weights": [weights(3), weights(4) + 1]}, "'A b': a weight is not from 0 to 1"),
        ({"weights": [weights(3) * np.nan, weights(4)]}, "'Toy': a weight is not from 0 to 1"),
        ({"presets": {"far": (2, 0)}}, "preset 'far': there is no layer 2"),
        ({"presets": {"far": (0, 3)}}, "with head 3"),
        ({"presets": {"far": (0, -1)}}, "with head -1"),
        ({"name": 'a" b'}, "starts ids"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer(**changes)


def test_it_is_imported_without_torch():
    assert "torch" not in loaded_by("from recsys_lib.chapter.explorer import AttentionExplorer")
