"""Attention against torch's own implementations, in values and gradients, and against what must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recsys_lib.attention import (
    CrossAttention,
    EncoderBlock,
    FeedForward,
    MultiHeadAttention,
    TransformerEncoder,
    attention_weights,
    causal_mask,
    combine_masks,
    padding_mask,
    present_tokens,
    scaled_dot_product_attention,
    sinusoidal_positions,
)

FORMS = pytest.mark.parametrize("fused", [False, True], ids=["written out", "fused"])
LEADING = [(), (3,), (2, 3), (1, 2, 3)]
close = torch.testing.assert_close


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_mask(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4


def values_and_gradients(function, *inputs: Tensor) -> list[Tensor]:
    """The result, and the gradient of a fixed random projection of it for each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    (result * draw(*result.shape, seed=99).to(result.dtype)).sum().backward()
    return [result.detach(), *(x.grad for x in leaves)]


def by_hand(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """One query at a time, in plain Python: the definition."""
    rows = []
    for i in range(len(q)):
        keys = [j for j in range(len(k)) if allowed[i, j]]
        powers = [
            math.exp(sum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(q.shape[1]))
            for j in keys
        ]
        total = [sum(p * v[j, c] for p, j in zip(powers, keys, strict=True)) for c in range(v.shape[1])]
        rows.append([float(t) / sum(powers) if keys else 0.0 for t in total])
    return torch.tensor(rows, dtype=torch.float64)


# --- one attention -----------------------------------------------------------------------------------------


@FORMS
def test_attention_is_the_definition(fused: bool) -> None:
    q, k, v, mask = draw(4, 6), draw(5, 6, seed=1), draw(5, 3, seed=2), draw_mask(4, 5, seed=3)
    mask[2] = False
    result = scaled_dot_product_attention(q, k, v, mask, fused=fused)
    close(result.double(), by_hand(q.double(), k.double(), v.double(), mask), atol=1e-6, rtol=0)


def masks_for(kind: str, leading: tuple[int, ...], queries: int, keys: int, seed: int) -> Tensor | None:
    if kind == "none":
        return None
    # A mask of keys broadcasts over the queries, as padding does.
    mask = draw_mask(*((*leading, 1) if kind == "keys" else (queries,)), keys, seed=seed)
    mask[..., 0] = True  # no query without a key: torch is compared here, and is not ours to judge there
    if kind == "added":
        return draw(queries, keys, seed=seed).masked_fill(~mask, -math.inf)
    return mask


@settings(max_examples=60, deadline=None)
@given(
    leading=st.sampled_from(LEADING),
    queries=st.integers(1, 7),
    keys=st.integers(1, 7),
    features=st.sampled_from([1, 2, 8, 16]),
    kind=st.sampled_from(["none", "keys", "pairs", "added"]),
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10_000),
)
def test_both_forms_equal_torch_in_values_and_gradients(
    leading: tuple[int, ...],
    queries: int,
    keys: int,
    features: int,
    kind: str,
    is_causal: bool,
    scale: float | None,
    seed: int,
) -> None:
    q, k, v = (draw(*leading, n, features, seed=seed + i) for i, n in enumerate([queries, keys, keys]))
    mask = masks_for(kind, leading, queries, keys, seed)
    reference_mask = mask
    if is_causal and mask is not None:
        # torch takes either a mask or is_causal; together they mean that both must allow a key.
        past = torch.ones(queries, keys, dtype=torch.bool).tril()
        reference_mask = mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -math.inf)
    expected = values_and_gradients(
        lambda q, k, v: functional.scaled_dot_product_attention(
            q, k, v, reference_mask, is_causal=is_causal and mask is None, scale=scale
        ),
        q,
        k,
        v,
    )
    for fused in (False, True):
        actual = values_and_gradients(
            lambda q, k, v, fused=fused: scaled_dot_product_attention(
                q, k, v, mask, is_causal, scale=scale, fused=fused
            ),
            q,
            k,
            v,
        )
        for a, e in zip(actual, expected, strict=True):
            close(a, e, atol=1e-5, rtol=1e-5)


def test_the_fused_form_reaches_the_fused_kernel() -> None:
    """Three axes or fewer would silently take torch's slow form."""
    for shape in [(5, 8), (2, 5, 8), (2, 3, 5, 8)]:
        with torch.profiler.profile() as profile:
            scaled_dot_product_attention(draw(*shape), draw(*shape), draw(*shape))
        kernels = {event.name for event in profile.events()}
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in kernels
        assert "aten::_scaled_dot_product_attention_math" not in kernels


def test_keys_may_be_shared_by_all_heads() -> None:
    q, k, v = draw(2, 3, 4, 8), draw(5, 8, seed=1), draw(5, 8, seed=2)
    written, fused = (scaled_dot_product_attention(q, k, v, fused=f) for f in (False, True))
    close(written, fused, atol=1e-6, rtol=0)
    close(written[1, 2], scaled_dot_product_attention(q[1, 2], k, v), atol=1e-6, rtol=0)


@FORMS
@pytest.mark.parametrize("kind", ["boolean", "added", "added and causal"])
@pytest.mark.parametrize("leading", [(), (2, 3)], ids=["no batch", "batch and heads"])
def test_a_query_that_may_look_at_nothing(fused: bool, kind: str, leading: tuple[int, ...]) -> None:
    """Zeros, and gradients that are finite, zero for that query; the other rows as if it were not there."""
    q, k, v = draw(*leading, 4, 8), draw(*leading, 5, 8, seed=1), draw(*leading, 5, 8, seed=2)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2] = False
    if kind == "added and causal":
        mask[1, :2] = False  # the mask leaves it the future, which is_causal takes
    shut = [1, 2] if kind == "added and causal" else [2]
    given_mask = mask if kind == "boolean" else torch.zeros(4, 5).masked_fill(~mask, -math.inf)
    result, *gradients = values_and_gradients(
        lambda q, k, v: scaled_dot_product_attention(
            q, k, v, given_mask, kind == "added and causal", fused=fused
        ),
        q,
        k,
        v,
    )
    rest = [i for i in range(4) if i not in shut]
    assert (result[..., shut, :] == 0).all()
    assert (result[..., rest, :] != 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][..., shut, :] == 0).all()
    assert (gradients[0][..., rest, :] != 0).any()


def test_no_kernel_is_asked_about_a_row_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels differ over such a row. This one makes NaN of it, in its gradients too, as older ones did."""

    def unguarded(q, k, v, mask, dropout, is_causal, scale):
        bias = (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
            if mask.dtype == torch.bool
            else mask
        )
        return (q @ k.mT * scale + bias).softmax(-1) @ v

    monkeypatch.setattr(functional, "scaled_dot_product_attention", unguarded)
    mask = torch.tensor([[True, True], [False, False]])
    for given_mask in (mask, torch.zeros(2, 2).masked_fill(~mask, -math.inf)):
        for result in values_and_gradients(
            lambda q, m=given_mask: scaled_dot_product_attention(q, q, q, m, scale=1.0), draw(2, 8)
        ):
            assert result.isfinite().all()


@FORMS
def test_all_keys_masked_in_all_rows(fused: bool) -> None:
    q = draw(2, 3, 4, 8)
    result, *gradients = values_and_gradients(
        lambda q, k, v: scaled_dot_product_attention(
            q, k, v, torch.zeros(4, 4, dtype=torch.bool), fused=fused
        ),
        q,
        q,
        q,
    )
    assert (result == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)


@FORMS
def test_a_huge_negative_number_is_a_bias_not_a_mask(fused: bool) -> None:
    """Only -inf shuts out; a constant added to a whole row changes nothing, as in torch."""
    q = draw(4, 8)
    bias = torch.full((4, 4), -1e4)
    close(
        scaled_dot_product_attention(q, q, q, bias, fused=fused),
        scaled_dot_product_attention(q, q, q, fused=fused),
        atol=2e-3,  # what adding 10,000 costs in float32
        rtol=0,
    )


def test_a_learned_bias_gets_its_gradient_in_both_forms() -> None:
    q, bias = draw(2, 3, 4, 8), draw(3, 4, 4, seed=1)
    written, fused = (
        values_and_gradients(lambda b, f=f: scaled_dot_product_attention(q, q, q, b, fused=f), bias)
        for f in (False, True)
    )
    close(written[1], fused[1], atol=1e-5, rtol=0)
    assert written[1].abs().max() > 0.01


@FORMS
def test_length_one_returns_the_value(fused: bool) -> None:
    v = draw(2, 1, 8, seed=2)
    close(scaled_dot_product_attention(draw(2, 1, 8), draw(2, 1, 8, seed=1), v, fused=fused), v)
    close(
        scaled_dot_product_attention(draw(2, 1, 8), draw(2, 1, 8, seed=1), v, is_causal=True, fused=fused), v
    )


@FORMS
@pytest.mark.parametrize(
    ("q_shape", "k_shape"), [((2, 0, 8), (2, 3, 8)), ((2, 3, 8), (2, 0, 8)), ((0, 3, 8), (0, 3, 8))]
)
def test_empty_axes(fused: bool, q_shape: tuple[int, ...], k_shape: tuple[int, ...]) -> None:
    """No queries, no keys (a mean of nothing: zeros), no batch."""
    result = scaled_dot_product_attention(draw(*q_shape), draw(*k_shape), draw(*k_shape), fused=fused)
    assert result.shape == q_shape
    assert (result == 0).all()


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(fused: bool, dtype: torch.dtype) -> None:
    q, k, v = (draw(2, 3, 9, 8, seed=i, dtype=dtype) for i in range(3))
    mask = draw_mask(9, 9)
    mask[3] = False
    result, *gradients = values_and_gradients(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, fused=fused), q, k, v
    )
    expected, *expected_gradients = values_and_gradients(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask, fused=False),
        q.float(),
        k.float(),
        v.float(),
    )
    step = torch.finfo(dtype).eps
    assert result.dtype == dtype
    close(result.float(), expected, atol=4 * step, rtol=4 * step)
    for a, e in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == dtype
        close(a.float(), e, atol=16 * step, rtol=16 * step)


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_an_added_mask_may_be_of_another_type(
    fused: bool, dtype: torch.dtype, mask_dtype: torch.dtype
) -> None:
    q, bias = draw(3, 8, dtype=dtype), torch.tensor([[0.0, 1.0, -math.inf]])
    result = scaled_dot_product_attention(q, q, q, bias.to(mask_dtype), fused=fused)
    assert result.dtype == dtype
    close(result, scaled_dot_product_attention(q, q, q, bias.to(dtype), fused=fused))


def test_half_precision_scores_do_not_overflow() -> None:
    """A dot product of 64 x 64 x 64 is beyond float16's 65,504; written out it is taken in float32."""
    q = torch.full((2, 64), 64.0, dtype=torch.float16)
    weights = attention_weights(q, q)
    assert weights.dtype == torch.float32
    close(weights, torch.full((2, 2), 0.5))


def test_double_precision_stays_double() -> None:
    q = draw(4, 8, dtype=torch.float64)
    assert attention_weights(q, q).dtype == torch.float64
    written, fused = (scaled_dot_product_attention(q, q, q, fused=f) for f in (False, True))
    close(written, fused, atol=1e-13, rtol=0)


@FORMS
def test_errors_name_what_does_not_fit(fused: bool) -> None:
    q, k = draw(2, 3, 4, 8), draw(2, 3, 5, 8)
    for shape in [(5, 4), (4, 4), (2, 4, 5), (1, 2, 3, 4, 5), (2, 5)]:
        with pytest.raises(ValueError, match=r"does not broadcast .* \(2, 3, 4, 5\)"):
            scaled_dot_product_attention(q, k, k, torch.ones(shape, dtype=torch.bool), fused=fused)
    with pytest.raises(TypeError, match=r"int64.*padding_mask"):
        scaled_dot_product_attention(q, k, k, torch.ones(4, 5, dtype=torch.int64), fused=fused)
    with pytest.raises(ValueError, match="equally many features, got 8 and 7"):
        scaled_dot_product_attention(q, k[..., :7], k, fused=fused)
    for v in (k[..., :4, :], draw(4, 3, 5, 8), draw(1, 2, 3, 5, 8), draw(5)):
        with pytest.raises(ValueError, match=r"each key needs its value, got k of shape \(2, 3, 5, 8\), v"):
            scaled_dot_product_attention(q, k, v, fused=fused)
    with pytest.raises(ValueError, match="do not fit"):
        scaled_dot_product_attention(q, draw(3, 3, 5, 8), k, fused=fused)
    with pytest.raises(ValueError, match="at least the axes"):
        scaled_dot_product_attention(draw(8), k, k, fused=fused)


def test_weights_come_with_the_result() -> None:
    q, mask = draw(2, 4, 8), draw_mask(4, 4)
    mask[1] = False
    result, weights = scaled_dot_product_attention(q, q, q, mask, return_weights=True)
    close(weights.sum(-1), torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(2, 4))
    assert (weights[:, ~mask] == 0).all()
    close(weights @ q, result)
    close(result, scaled_dot_product_attention(q, q, q, mask), atol=1e-6, rtol=0)


@FORMS
def test_dropout_drops_weights_and_keeps_the_mean(fused: bool) -> None:
    torch.manual_seed(0)
    q, v = torch.zeros(1, 400, 8), torch.ones(1, 400, 8)
    result = scaled_dot_product_attention(q, q, v, dropout=0.5, fused=fused)
    assert result.std() > 0.01
    assert result.mean() == pytest.approx(1.0, abs=0.02)


# --- masks -------------------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    assert causal_mask(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(2, 3).int().tolist() == [[1, 0, 0], [1, 1, 0]]
    present = present_tokens(torch.tensor([2, 0, 3]), 3)
    assert present.int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert padding_mask(present.long()).shape == (3, 1, 1, 3)
    assert padding_mask(present.long()).dtype == torch.bool
    assert padding_mask(present[0]).shape == (1, 1, 3)
    assert combine_masks() is None
    assert combine_masks(None, None) is None
    both = combine_masks(causal_mask(3), None, padding_mask(present))
    assert both.shape == (3, 1, 3, 3)
    assert both[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert not both[1].any()


def test_combining_a_boolean_mask_with_an_added_one() -> None:
    bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, -math.inf], [3.0, 4.0]])
    assert combine_masks(causal_mask(2), bias).equal(expected)
    assert combine_masks(bias, causal_mask(2)).equal(expected)
    assert combine_masks(bias, causal_mask(2), bias).equal(expected + bias)


@FORMS
def test_padding_tokens_change_nothing(fused: bool) -> None:
    """A padded batch gives each sequence what it gets alone."""
    q = draw(2, 3, 6, 8)
    lengths = torch.tensor([6, 4])
    padded = scaled_dot_product_attention(q, q, q, padding_mask(present_tokens(lengths, 6)), fused=fused)
    alone = scaled_dot_product_attention(q[1, :, :4], q[1, :, :4], q[1, :, :4], fused=fused)
    close(padded[1, :, :4], alone, atol=1e-6, rtol=0)


# --- heads, blocks, encoder, against torch.nn --------------------------------------------------------------


def torch_attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """torch.nn.MultiheadAttention with our weights."""
    dim, context_dim = ours.query.in_features, ours.key.in_features
    theirs = nn.MultiheadAttention(dim, ours.n_heads, kdim=context_dim, vdim=context_dim, batch_first=True)
    with torch.no_grad():
        if dim == context_dim:
            theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        else:
            theirs.q_proj_weight.copy_(ours.query.weight)
            theirs.k_proj_weight.copy_(ours.key.weight)
            theirs.v_proj_weight.copy_(ours.value.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    return theirs


@FORMS
@pytest.mark.parametrize("context_dim", [None, 12], ids=["self", "cross"])
def test_heads_equal_torch(fused: bool, context_dim: int | None) -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(16, 4, context_dim=context_dim, fused=fused)
    theirs = torch_attention(ours)
    x = draw(3, 6, 16)
    context = draw(3, 5, context_dim, seed=1) if context_dim else x
    present = present_tokens(torch.tensor([5, 3, 4]), context.shape[1])
    pairs = draw_mask(6, context.shape[1], seed=2)
    pairs[:, 0] = True
    combined = combine_masks(padding_mask(present), pairs)
    actual = values_and_gradients(lambda x, c: ours(x, c, combined), x, context)
    # torch.nn.MultiheadAttention reads boolean masks the other way round: True shuts out.
    expected = values_and_gradients(lambda x, c: theirs(x, c, c, ~present, attn_mask=~pairs)[0], x, context)
    for a, e in zip(actual, expected, strict=True):
        close(a, e, atol=1e-5, rtol=0)
    for name, parameter in ours.output.named_parameters():
        close(parameter.grad, theirs.out_proj.get_parameter(name).grad, atol=1e-5, rtol=0)
    if context_dim is None:
        close(ours.query.weight.grad, theirs.in_proj_weight.grad[:16], atol=1e-5, rtol=0)
    weights = theirs(x, context, context, ~present, attn_mask=~pairs, average_attn_weights=False)[1]
    close(ours.weights(x, context, combined), weights, atol=1e-6, rtol=0)


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cross_attention_with_padding_on_both_sides_equals_torch(fused: bool, dtype: torch.dtype) -> None:
    """Values and gradients where there is a query; at padding nothing, where torch has no number."""
    torch.manual_seed(0)
    ours = MultiHeadAttention(16, 4, context_dim=12, fused=fused)
    theirs = torch_attention(ours)
    lengths_x, lengths = torch.tensor([4, 2, 3]), torch.tensor([5, 1, 0])
    real, present = present_tokens(lengths_x, 4), present_tokens(lengths, 5)  # (B, Tq), (B, Tk)
    x, context = draw(3, 4, 16), draw(3, 5, 12, seed=1)
    kept = real & (lengths > 0)[:, None]  # queries that have something to look at
    # Rows without any key are asked about all keys in torch, and then left out.
    shut = ~present & (lengths > 0)[:, None]
    expected = values_and_gradients(lambda x, c: theirs(x, c, c, shut)[0] * kept[:, :, None], x, context)
    ours = ours.to(dtype)
    mask = padding_mask(present, real)
    assert mask.shape == (3, 1, 4, 5)
    actual = values_and_gradients(
        lambda x, c: ours(x, c, mask) * kept[:, :, None], x.to(dtype), context.to(dtype)
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 5e-3}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        close(a.float(), e, atol=tolerance, rtol=0)
    # The other queries get the bias of the output map and send nothing back.
    whole, to_x, to_context = values_and_gradients(
        lambda x, c: ours(x, c, mask) * ~kept[:, :, None], x.to(dtype), context.to(dtype)
    )
    assert (whole[~kept] == ours.output.bias).all()
    assert not to_x.any()
    assert not to_context.any()
    assert not ours.weights(x.to(dtype), context.to(dtype), mask).transpose(1, 2)[~kept].any()


@FORMS
def test_all_pairs_of_two_batches_meet_by_broadcasting(fused: bool) -> None:
    """Users (U, 1, Tq, d) and items (1, I, Tk, d): each pair as if it were alone."""
    torch.manual_seed(0)
    cross = CrossAttention(8, 2, fused=fused)
    x, context = draw(3, 4, 8), draw(2, 5, 8, seed=1)
    real = present_tokens(torch.tensor([4, 2, 0]), 4)
    present = present_tokens(torch.tensor([5, 3]), 5)
    mask = padding_mask(present[None], real[:, None])  # (U, I, 1, Tq, Tk)
    together = cross(x[:, None], context[None], mask)  # (U, I, Tq, d)
    weights = cross.weights(x[:, None], context[None], mask)  # (U, I, H, Tq, Tk)
    assert together.shape == (3, 2, 4, 8)
    for user in range(3):
        for item in range(2):
            n, m = int(real[user].sum()), int(present[item].sum())
            alone = cross(x[user, :n], context[item, :m])  # (n, d)
            close(together[user, item, :n], alone, atol=1e-6, rtol=0)
            alone = cross.weights(x[user, :n], context[item, :m])  # (H, n, m)
            close(weights[user, item, :, :n, :m], alone, atol=1e-6, rtol=0)
            assert not weights[user, item, :, n:].any()
            assert not weights[user, item, :, :, m:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooled_is_the_weighted_sum_of_what_is_found(dtype: torch.dtype) -> None:
    """Values and gradients, for all pairs of two batches, with padding and shares of every kind."""
    torch.manual_seed(0)
    cross = CrossAttention(8, 2)
    nn.init.normal_(cross.attention.output.bias)
    real = present_tokens(torch.tensor([4, 2, 0]), 4)
    mask = padding_mask(present_tokens(torch.tensor([5, 0]), 5)[None], real[:, None])
    inputs = draw(3, 4, 8), draw(2, 5, 8, seed=1), draw(3, 4, seed=2) * real

    def whole(x: Tensor, context: Tensor, shares: Tensor) -> Tensor:
        return (shares[:, None, :, None] * cross(x[:, None], context[None], mask)).sum(-2)  # (U, I, d)

    expected = values_and_gradients(whole, *inputs)
    cross = cross.to(dtype)
    actual = values_and_gradients(
        lambda x, context, shares: cross.pooled(x[:, None], context[None], shares[:, None], mask),
        *(x.to(dtype) for x in inputs),
    )
    for a, e in zip(actual, expected, strict=True):
        close(a.float(), e, atol=1e-5 if dtype == torch.float32 else 0.2, rtol=0)


def test_cross_attention_equals_the_sublayer_of_torchs_decoder() -> None:
    torch.manual_seed(0)
    ours = CrossAttention(16, 4).eval()
    nn.init.normal_(ours.norm.weight)
    theirs = nn.TransformerDecoderLayer(16, 4, norm_first=True, batch_first=True, dropout=0.0)
    theirs.multihead_attn.load_state_dict(torch_attention(ours.attention).state_dict())
    theirs.norm2.load_state_dict(ours.norm.state_dict())
    x, memory = draw(2, 4, 16), draw(2, 5, 16, seed=1)
    normed = functional.layer_norm(memory, (16,))
    close(ours(x, memory), x + theirs._mha_block(theirs.norm2(x), normed, None, None), atol=1e-5, rtol=0)
    # What is dropped is what was found; the residual goes through.
    dropping = CrossAttention(16, 4, dropout=1.0)
    assert torch.equal(dropping(x, memory), x)
    assert not torch.equal(dropping.eval()(x, memory), x)


@FORMS
def test_a_mask_for_each_sequence_is_not_one_for_each_head(fused: bool) -> None:
    """(B, Tq, Tk) belongs to the sequences, also where there are as many heads as sequences."""
    attention = MultiHeadAttention(8, 2, fused=fused)
    x, mask = draw(2, 4, 8), draw_mask(2, 4, 4, seed=5)
    batch = attention(x, mask=mask)
    for i in range(2):
        close(batch[i], attention(x[i], mask=mask[i]), atol=1e-6, rtol=0)
        close(attention.weights(x, mask=mask)[i], attention.weights(x[i], mask=mask[i]), atol=1e-6, rtol=0)
    close(attention(x, mask=mask[:, None]), batch)


def test_the_written_out_form_calls_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", None)
    TransformerEncoder(10, 8, 1, 2, fused=False)(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="not callable"):
        TransformerEncoder(10, 8, 1, 2, fused=True)(torch.zeros(1, 3, dtype=torch.int64))


def test_heads_share_dim_evenly() -> None:
    with pytest.raises(ValueError, match=r"dim=10 .* n_heads=4"):
        MultiHeadAttention(10, 4)


@FORMS
@pytest.mark.parametrize("is_causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_equals_torch(norm: str, activation: str, is_causal: bool, fused: bool) -> None:
    torch.manual_seed(0)
    ours = EncoderBlock(16, 4, 24, norm=norm, activation=activation, eps=1e-6, fused=fused)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, activation, layer_norm_eps=1e-6, batch_first=True, norm_first=norm == "pre"
    )
    for parameter in (ours.attention_norm.weight, ours.feed_forward_norm.bias):
        nn.init.normal_(parameter)
    theirs.self_attn = torch_attention(ours.attention)
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
    theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())
    x, present = draw(3, 6, 16), present_tokens(torch.tensor([6, 2, 4]), 6)
    actual = values_and_gradients(lambda x: ours(x, padding_mask(present), is_causal), x)
    expected = values_and_gradients(
        lambda x: theirs(x, None if not is_causal else ~causal_mask(6), ~present, is_causal=is_causal), x
    )
    for a, e in zip(actual, expected, strict=True):
        close(a, e, atol=1e-5, rtol=0)
    close(ours.feed_forward.up.weight.grad, theirs.linear1.weight.grad, atol=1e-4, rtol=1e-5)
    close(ours.attention_norm.weight.grad, theirs.norm1.weight.grad, atol=1e-4, rtol=1e-5)


def test_block_drops_out_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = EncoderBlock(16, 4, dropout=0.5), draw(2, 6, 16)
    assert not block(x).equal(block(x))
    block.eval()
    assert block(x).equal(block(x))
    for attention_dropout, dropped in ((None, True), (0.5, True), (0.0, False)):
        block = EncoderBlock(16, 4, dropout=0.5, attention_dropout=attention_dropout)
        block.dropout.eval()  # what is left is the dropout of attention weights
        assert block(x).equal(block(x)) != dropped


def test_only_the_residual_survives_full_dropout() -> None:
    """Each sublayer's output is dropped before it is added (Vaswani et al. 2017, section 5.4)."""
    torch.manual_seed(0)
    x = draw(2, 6, 16)
    assert EncoderBlock(16, 4, norm="pre", dropout=1.0)(x).equal(x)
    normalized = functional.layer_norm(functional.layer_norm(x, (16,)), (16,))
    close(EncoderBlock(16, 4, norm="post", dropout=1.0)(x), normalized)
    assert (TransformerEncoder(9, 16, 1, 4, dropout=1.0).embed(torch.tensor([[1, 2]])) == 0).all()


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="'middle'"):
        EncoderBlock(8, 2, norm="middle")
    with pytest.raises(ValueError, match="'swish'"):
        FeedForward(8, activation="swish")
    with pytest.raises(ValueError, match="'rotary'"):
        TransformerEncoder(10, 8, 1, 2, positions="rotary")
    with pytest.raises(ValueError, match=r"dim=7 must be even"):
        sinusoidal_positions(3, 7)


def test_sinusoids_are_the_formula() -> None:
    table = sinusoidal_positions(50, 6)
    for t in (0, 1, 49):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(0, 40), seed=st.integers(0, 1000))
def test_sinusoids_know_the_distance(shift: int, seed: int) -> None:
    """The dot product of two positions depends on their distance alone (Vaswani et al. 2017, section 3.5)."""
    table = sinusoidal_positions(100, 16).double()
    i, j = torch.randint(0, 50, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    assert (table[i] @ table[j]).item() == pytest.approx(
        (table[i + shift] @ table[j + shift]).item(), abs=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 9),
    norm=st.sampled_from(["pre", "post"]),
    fused=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_without_positions_a_permutation_goes_straight_through(
    length: int, norm: str, fused: bool, seed: int
) -> None:
    """Permuted tokens give permuted vectors, and weights permuted on both axes; with positions, not so."""
    torch.manual_seed(seed)
    order = torch.randperm(length)
    ids = torch.randperm(20)[:length].expand(2, -1)
    encoder = TransformerEncoder(20, 16, 2, 4, positions="none", norm=norm, fused=fused).eval()
    close(encoder(ids[:, order]), encoder(ids)[:, order], atol=1e-5, rtol=0)
    weights, permuted = encoder.trace(ids).weights, encoder.trace(ids[:, order]).weights
    close(permuted, weights[..., order, :][..., order], atol=1e-5, rtol=0)
    for positions in ("learned", "sinusoidal"):
        if (order != torch.arange(length)).any():
            encoder = TransformerEncoder(20, 16, 2, 4, positions=positions, norm=norm, fused=fused).eval()
            assert (encoder(ids[:, order]) - encoder(ids)[:, order]).abs().max() > 1e-4


def make_encoder(**options) -> TransformerEncoder:
    torch.manual_seed(0)
    settings = {"max_length": 12, "n_segments": 2, "norm": "post", **options}
    encoder = TransformerEncoder(30, 16, 3, 4, **settings)
    for parameter in encoder.parameters():  # far from the quiet start, so that every term shows
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


@pytest.mark.parametrize("is_causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_and_batch_do_not_matter_to_the_encoder(norm: str, positions: str, is_causal: bool) -> None:
    encoder = make_encoder(norm=norm, positions=positions)
    ids, lengths = torch.randint(0, 30, (3, 8)), torch.tensor([8, 1, 5])
    present = present_tokens(lengths, 8)
    batch = encoder(ids, present, is_causal=is_causal)
    for i, n in enumerate(lengths.tolist()):
        close(batch[i, :n], encoder(ids[i, :n], is_causal=is_causal), atol=1e-5, rtol=0)
    close(encoder(ids, present.long(), is_causal=is_causal), batch)


def test_causal_encoder_does_not_see_the_future() -> None:
    encoder, ids = make_encoder(norm="pre"), torch.arange(8)
    changed = ids.clone()
    changed[5:] += 10
    before, after = encoder(ids, is_causal=True), encoder(changed, is_causal=True)
    close(before[:5], after[:5])
    assert (before[5:] - after[5:]).abs().amin(-1).max() > 1e-4
    assert (encoder(ids)[:5] - encoder(changed)[:5]).abs().max() > 1e-2


def test_encoder_mask_for_each_sequence() -> None:
    encoder, ids, mask = make_encoder(), torch.randint(0, 30, (3, 6)), draw_mask(3, 6, 6)
    batch = encoder(ids, mask=mask)
    for i in range(3):
        close(batch[i], encoder(ids[i], mask=mask[i]), atol=1e-5, rtol=0)
    with_padding = encoder(ids, torch.ones_like(ids), mask=mask)
    close(with_padding, batch, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_trace_shows_what_forward_does(norm: str) -> None:
    encoder = make_encoder(norm=norm)
    ids, present = torch.randint(0, 30, (2, 7)), present_tokens(torch.tensor([7, 4]), 7)
    trace = encoder.trace(ids, present)
    assert trace.hidden.shape == (4, 2, 7, 16)
    assert trace.weights.shape == (3, 2, 4, 7, 7)
    close(trace.hidden[-1], encoder(ids, present))
    close(trace.hidden[0], encoder.embed(ids))
    close(trace.weights.sum(-1), torch.ones(3, 2, 4, 7))
    assert (trace.weights[:, 1, :, :, 4:] == 0).all()
    assert (encoder.trace(ids, is_causal=True).weights.triu(1) == 0).all()
    embedded = encoder.token_embedding(ids) + encoder.segment_embedding.weight[0]
    embedded = embedded + encoder.position_embedding.weight[:7]
    if norm == "post":
        norm_weights = encoder.embedding_norm.weight, encoder.embedding_norm.bias
        embedded = functional.layer_norm(embedded, (16,), *norm_weights)
    close(trace.hidden[0], embedded)
    assert not trace.hidden.requires_grad
    attention, x = encoder.blocks[1].attention, trace.hidden[1]
    x = encoder.blocks[1].attention_norm(x) if norm == "pre" else x
    values = attention.value(x).unflatten(-1, (4, 4)).transpose(1, 2)
    merged = (trace.weights[1] @ values).transpose(1, 2).flatten(2)
    close(attention.output(merged), attention(x, mask=padding_mask(present)), atol=1e-5, rtol=0)


def test_segments_matter_and_default_to_the_first() -> None:
    encoder, ids = make_encoder(), torch.randint(0, 30, (2, 5))
    close(encoder(ids), encoder(ids, segments=torch.zeros_like(ids)))
    assert (encoder(ids) - encoder(ids, segments=torch.ones_like(ids))).abs().max() > 0.01
    with pytest.raises(ValueError, match="n_segments=0"):
        make_encoder(n_segments=0)(ids, segments=torch.zeros_like(ids))


def test_encoder_refuses_what_does_not_fit() -> None:
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"13 tokens .* max_length=12"):
        encoder(torch.zeros(2, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 5\)"):
        encoder(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 4))


def test_fresh_weights_are_small_and_padding_is_zero() -> None:
    torch.manual_seed(0)
    encoder = TransformerEncoder(500, 64, 2, 4, padding_id=3)
    assert encoder.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.blocks[1].feed_forward.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (encoder.blocks[0].attention.query.bias == 0).all()
    assert (encoder.token_embedding.weight[3] == 0).all()
    encoder(torch.tensor([[1, 3, 2]])).sum().backward()
    assert (encoder.token_embedding.weight.grad[3] == 0).all()


# --- devices -----------------------------------------------------------------------------------------------


class OnMetaOnly(TorchDispatchMode):
    """Fails where an operation makes or takes a tensor of another device than meta.

    Without it torch lets some operations mix: a product of matrices, an index, an embedding.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.device.type == "meta", (
                f"{function} on {tensor.device}"
            )
        return result


@FORMS
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_no_tensor_is_made_on_another_device(norm: str, positions: str, fused: bool) -> None:
    """On torch's meta device an operation with a tensor of the CPU fails, so a slip shows without a GPU."""
    with torch.device("meta"):
        encoder = TransformerEncoder(30, 16, 2, 4, n_segments=2, norm=norm, positions=positions, fused=fused)
        cross = CrossAttention(16, 2, fused=fused)
        ids, lengths = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with OnMetaOnly():
        present = present_tokens(lengths, 7)
        for is_causal in (False, True):
            for mask in (None, torch.zeros(7, 7, device="meta"), torch.ones(2, 7, 7, device="meta").bool()):
                encoder(ids, mask=mask, is_causal=is_causal).sum().backward()
                encoder(ids, present, present.long(), mask=mask, is_causal=is_causal).sum().backward()
                encoder.trace(ids, present, mask=mask, is_causal=is_causal)
        causal_mask(3, device="meta")
        cross(
            torch.zeros(2, 1, 7, 16, device="meta"),
            torch.zeros(1, 3, 5, 16, device="meta"),
            padding_mask(torch.ones(1, 3, 5, device="meta"), present[:, None]),
        ).sum().backward()
    assert sinusoidal_positions(3, 4, device="meta").device.type == "meta"
