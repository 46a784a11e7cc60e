"""Losses for learning to rank, each small enough to read beside its formula.

All take scores, that is logits, of any real value; none takes probabilities. All return the mean over the
batch as a scalar. Half precision inputs are computed in float32, because a sum of exponentials overflows
float16 at a logit of 11; the gradients come back in the inputs' own type.

Shapes: B examples (a user and an item that the user chose), K negatives for each, N items in the catalog, C
items in a batch.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "bce_loss",
    "bce_slope",
    "bpr_loss",
    "bpr_slope",
    "gbce_loss",
    "in_batch_softmax_loss",
    "nt_xent_loss",
    "sampled_softmax_loss",
    "softmax_loss",
]


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalized ranking: the chosen item should outscore one that was not chosen.

    The posterior of a ranking multiplies, over all triples (user u, chosen i, not chosen j), the probability
    sigma(s_ui - s_uj) that i ranks above j. Its negative logarithm is the loss:

        L = -mean log sigma(s_ui - s_uj)

    The Gaussian prior of the same paper is the weight decay of the optimizer, not part of this function.

    Args:
        positive: (B,) scores of the chosen items.
        negative: (B,) or (B, K) scores of items that were not chosen; K pairs are averaged.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback", section 4.1 (BPR-Opt).
    """
    positive, negative = _pair(positive, negative)
    return -functional.logsigmoid(positive[:, None] - negative).mean()  # () over (B, K)


def bpr_slope(positive: Tensor, negative: Tensor) -> Tensor:
    """The derivative of ``bpr_loss`` by its scores, written out.

        dL/ds-_k = sigma(s-_k - s+) / (B K)        dL/ds+ = -sum_k dL/ds-_k

    Args:
        positive: (B,) as for the loss.
        negative: (B, K)

    Returns:
        (B, 1 + K), the one by the chosen item's score first.
    """
    positive, negative = _pair(positive, negative)
    slope = torch.sigmoid(negative - positive[:, None]) / max(1, negative.numel())  # (B, K)
    return torch.cat([-slope.sum(dim=1, keepdim=True), slope], dim=1)  # (B, 1 + K)


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy: chosen items are ones, sampled ones are zeros, each judged by itself.

        L = -mean over B of [log sigma(s+) + sum_k log(1 - sigma(s-_k))] / (K + 1)

    Args:
        positive: (B,) scores of the chosen items.
        negative: (B,) or (B, K) scores of items that were not chosen.

    Source: He et al. 2017, "Neural Collaborative Filtering", eq. 7; Kang and McAuley 2018, "Self-Attentive
    Sequential Recommendation", section III.E (which sums where this averages: twice the value at K = 1).
    """
    positive, negative = _pair(positive, negative)
    log_likelihood = functional.logsigmoid(positive) + functional.logsigmoid(-negative).sum(dim=1)  # (B,)
    return -log_likelihood.mean() / (negative.shape[1] + 1)


def bce_slope(positive: Tensor, negative: Tensor) -> Tensor:
    """The derivative of ``bce_loss`` by its scores, written out.

        dL/ds-_k = sigma(s-_k) / (B (K + 1))        dL/ds+ = -sigma(-s+) / (B (K + 1))

    Args:
        positive: (B,) as for the loss.
        negative: (B, K)

    Returns:
        (B, 1 + K), the one by the chosen item's score first.
    """
    positive, negative = _pair(positive, negative)
    slope = torch.cat([-torch.sigmoid(-positive)[:, None], torch.sigmoid(negative)], dim=1)  # (B, 1 + K)
    return slope / max(1, slope.numel())


def gbce_loss(positive: Tensor, negative: Tensor, n_items: int, t: float) -> Tensor:
    """Generalized binary cross-entropy: undoes the overconfidence that sampling negatives causes.

    With few negatives the positives are over-represented, and plain BCE learns probabilities far above the
    true ones. Raising sigma(s+) to the power beta corrects that:

        alpha = K / (n_items - 1)                       the share of the negatives that is sampled
        beta  = alpha (t (1 - 1/alpha) + 1/alpha)       t = 0: beta = 1, plain BCE; t = 1: beta = alpha
        L     = -mean over B of [beta log sigma(s+) + sum_k log(1 - sigma(s-_k))] / (K + 1)

    Args:
        positive: (B,) scores of the chosen items.
        negative: (B,) or (B, K) scores of items drawn uniformly from the others.
        n_items: size of the catalog N.
        t: calibration in [0, 1].

    Raises:
        ValueError: t outside [0, 1], or more negatives than the catalog has other items.

    Source: Petrov and Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained
    with Negative Sampling", eqs. 6 and 9.
    """
    positive, negative = _pair(positive, negative)
    n_sampled = negative.shape[1]
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t must lie in [0, 1], got {t}")
    if n_sampled > n_items - 1:
        raise ValueError(f"{n_sampled} negatives were given, but a catalog of {n_items} has fewer others")
    alpha = n_sampled / (n_items - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    log_likelihood = beta * functional.logsigmoid(positive) + functional.logsigmoid(-negative).sum(
        dim=1
    )  # (B,)
    return -log_likelihood.mean() / (n_sampled + 1)


def softmax_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Full softmax, or multinomial cross-entropy: the chosen item against the whole catalog.

        L = mean over B of [log sum_n exp(s_n) - s_target]

    Args:
        scores: (B, N) scores of every item.
        targets: (B,) int64 index of the chosen item.

    Source: Liang et al. 2018, "Variational Autoencoders for Collaborative Filtering", eq. 2, for one item.
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores (B, N) and targets (B,), got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    scores = _at_least_float32(scores)
    chosen = scores.gather(1, targets[:, None]).squeeze(1)  # (B,)
    return (scores.logsumexp(dim=1) - chosen).mean()


def sampled_softmax_loss(
    positive: Tensor,
    negative: Tensor,
    log_q_positive: Tensor | None = None,
    log_q_negative: Tensor | None = None,
) -> Tensor:
    """Softmax over the chosen item and K sampled ones, corrected for how the samples were drawn.

    An item that is drawn often is pushed down often, whatever its merit. Subtracting the logarithm of how
    often it is expected among the K draws, log(K q), makes the sampled sum an unbiased estimate of the
    full one:

        s'  = s - log(K q)
        L   = mean over B of [log(exp(s'+) + sum_k exp(s'-_k)) - s'+]

    Two uses are right. Negatives drawn from a distribution q over the *other* items: give ``log_q_negative``
    only. Positive and negatives drawn from the same q, as when a batch serves as its own negatives: give
    both. Without either, the loss is right up to a constant for uniform q, and favors rare items otherwise.

    Args:
        positive: (B,) scores of the chosen items.
        negative: (B,) or (B, K) scores of the sampled items; -inf leaves an entry out (an accidental hit).
        log_q_positive: (B,) log-probability that one draw gives the chosen item.
        log_q_negative: like ``negative``, log-probability that one draw gives the sampled item.

    Raises:
        ValueError: shapes that do not fit, or a correction of the positives alone.

    Source: Bengio and Senecal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural
    Probabilistic Language Model", section III; Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for
    Large Corpus Item Recommendations", eq. 4, for the batch as its own negatives.
    """
    if log_q_positive is not None and log_q_negative is None:
        raise ValueError("log_q_positive without log_q_negative would bias the loss: give both or the latter")
    positive, negative = _pair(positive, negative)
    log_k = math.log(negative.shape[1])
    if log_q_negative is not None:
        _same_shape("log_q_negative", log_q_negative.reshape(len(log_q_negative), -1), negative)
        negative = negative - (log_q_negative.reshape(negative.shape) + log_k)  # (B, K)
    if log_q_positive is not None:
        _same_shape("log_q_positive", log_q_positive, positive)
        positive = positive - (log_q_positive + log_k)  # (B,)
    logits = torch.cat([positive[:, None], negative], dim=1)  # (B, 1 + K)
    return (logits.logsumexp(dim=1) - positive).mean()


def in_batch_softmax_loss(
    scores: Tensor,
    items: Tensor | None = None,
    log_q: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    left_out: Tensor | None = None,
    temperature: float = 1.0,
    correct_positive: bool = True,
) -> Tensor:
    """The contrastive loss, InfoNCE: the chosen item against the items that the batch's other rows chose.

        z_bc = s_bc / temperature - log(K q_c)                 K = C - 1 columns that are not the row's own
        L    = mean over B of [log sum_c exp(z_bc) - z_b,target(b)]

    The items of other rows are a free sample, but not a fair one: item c is in the batch as often as it is
    chosen. q_c is the probability that one draw gives it, its share of the events. Subtracting log(K q_c),
    the logarithm of how often it is expected, undoes that; without it the minimizer is
    s = log p(c | user) - log q_c, which takes an item's popularity away from what the user thinks of it.

    **Is the row's own logit corrected too?** There are two derivations, and both are right.

    - ``correct_positive=True``, Yi et al. 2019, eq. 4. Given a batch, the row's own item is one of the C, and
      all others are draws from q. By Bayes' rule the odds that it is c are p(c | user) / q_c. So every logit
      is corrected, the minimizer is log p(c | user), and log K cancels.
    - ``correct_positive=False``, Bengio and Senecal 2008. The sum over the catalog is estimated: the row's
      own term is in it for certain, the other terms are weighted by 1 / (K q_c). So the own logit stays as it
      is. With the hits below left out, the estimated sum is right in expectation.

    The first weighs a rare item's example less, for its logit stands higher already; the second is noisier
    where K q is far from 1 for many items, since one draw then stands for many.

    **Accidental hits.** With ``items``, a column that holds the row's own item again is left out of the sum:
    it would be pushed down as the negative of itself. ``left_out`` takes out others, such as items that the
    user is known to have chosen as well.

    Args:
        scores: (B, C) of each row's user and each column's item; row b owns column ``targets[b]``.
            Columns beyond those that rows own are further negatives, for all rows.
        items: (C,) int64, which item a column holds. None takes all as different.
        log_q: (C,) log-probability that one draw gives the column's item; None corrects nothing.
        targets: (B,) int64; without them row b owns column b.
        left_out: (B, C) bool, True where a column is no negative of the row. The own column always counts.
        temperature: divides the scores, not the correction. A cosine, of 1 at most, needs one well below 1.
        correct_positive: see above; without ``log_q`` it does nothing.

    Raises:
        ValueError: shapes that do not fit, fewer columns than rows without ``targets``, or a temperature that
            is not above zero.

    Source: van den Oord, Li, Vinyals 2018, "Representation Learning with Contrastive Predictive Coding",
    eq. 4; Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
    https://doi.org/10.1145/3298689.3346996; Bengio and Senecal 2008, "Adaptive Importance Sampling to
    Accelerate Training of a Neural Probabilistic Language Model", section III.
    """
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(f"expected scores (B, C) with B and C of 1 or more, got {tuple(scores.shape)}")
    n_rows, n_columns = scores.shape
    if targets is None:
        if n_columns < n_rows:
            raise ValueError(
                f"{n_rows} rows do not each own one of {n_columns} columns; say which in targets"
            )
        targets = torch.arange(n_rows, device=scores.device)  # (B,)
    _same_shape("targets", targets, scores[:, 0])
    own = targets[:, None]  # (B, 1)
    logits = _at_least_float32(scores)  # (B, C)
    if _above_zero(temperature) != 1.0:
        logits = logits / temperature  # (B, C)
    if log_q is not None:
        _same_shape("log_q", log_q, scores[0])
        corrected = logits - (log_q + math.log(max(1, n_columns - 1)))  # (B, C)
        logits = corrected if correct_positive else corrected.scatter(1, own, logits.gather(1, own))
    hidden = left_out  # (B, C)
    if items is not None:
        _same_shape("items", items, scores[0])
        hits = items[targets][:, None] == items  # (B, C)
        hidden = hits if left_out is None else hits | left_out
    if hidden is not None:
        _same_shape("left_out", hidden, scores)
        logits = logits.masked_fill(hidden.scatter(1, own, False), -torch.inf)  # (B, C)
    return functional.cross_entropy(logits, targets)  # the L above, in one pass over the logits


def nt_xent_loss(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent, the symmetric contrastive loss of two views: the other view of a thing against all else.

    The 2 B vectors z, of both views, each look for their partner among the 2 B - 1 others, by the cosine:

        l(i, j) = -log [exp(cos(z_i, z_j) / temperature) / sum_{k != i} exp(cos(z_i, z_k) / temperature)]
        L       = mean of l(i, j) and l(j, i) over all pairs of views i, j of one thing

    ``in_batch_softmax_loss`` asks the row only, and compares it with the other view only. Here both are
    asked, and the vectors of the own view are negatives as well. That suits two views of one kind (an item's
    title and its genres). Of a user and an item the other users are no negatives: two users may well like the
    same.

    Args:
        a: (B, d), one view of each thing.
        b: (B, d), the other; row b is the same thing.
        temperature: divides the cosines.

    Raises:
        ValueError: shapes that differ, no rows, or a temperature that is not above zero.

    Source: Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual
    Representations", eq. 1 and algorithm 1.
    """
    if a.ndim != 2 or a.shape != b.shape or not a.numel():
        raise ValueError(f"expected two views (B, d), got {tuple(a.shape)} and {tuple(b.shape)}")
    z = functional.normalize(_at_least_float32(torch.cat([a, b])), dim=1)  # (2 B, d)
    logits = z @ z.mT / _above_zero(temperature)  # (2 B, 2 B)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)  # (2 B, 2 B)
    partner = torch.arange(len(z), device=z.device).roll(len(a))  # (2 B,)
    return softmax_loss(logits.masked_fill(itself, -torch.inf), partner)


def _pair(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Checks shapes and returns positives (B,) and negatives (B, K), in float32 or float64."""
    if negative.ndim == 1:
        negative = negative[:, None]  # (B, 1)
    if positive.ndim != 1 or negative.ndim != 2 or len(positive) != len(negative) or not negative.shape[1]:
        raise ValueError(
            "expected positive scores (B,) and negative scores (B,) or (B, K) with K of 1 or more, got "
            f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    return _at_least_float32(positive), _at_least_float32(negative)


def _same_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(tensor.shape)}")


def _above_zero(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return temperature


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
