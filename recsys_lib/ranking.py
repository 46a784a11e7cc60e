"""From scores to lists: score, leave out what was seen, take the top.

Every list in this library is made here: those of ``recommend``, those on which training stops, and those that
``evaluate`` measures. So what is tuned, reported and served is one thing, down to the rule for ties.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from recsys_lib.arguments import Indices, integer_indices, whole_number
from recsys_lib.data import Interactions, check_same_catalog
from recsys_lib.data.ragged import offsets, row_of_each, take_rows
from recsys_lib.metrics import refuse_nan
from recsys_lib.progress import progress_bar

__all__ = [
    "Fingerprint",
    "HeldOut",
    "LeftOut",
    "Scorer",
    "only",
    "rank_candidates",
    "rank_topk",
    "score_batches",
    "seen_in",
    "top_lists",
]

_MASK = 2**31 - 1  # hashes have 31 bits: products stay within int64, and a hash fits in an int32
_BLOCK = 2**21  # elements of a score matrix whose ties are resolved at once


def rank_topk(
    scores: Tensor, k: int, *, users: Tensor | None = None, items: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The k best items of every row, best first, with exact ties in a fair order.

    A higher score comes first. Items of *exactly* equal score are ordered by a seeded hash of (user, item),
    that is, at random but reproducibly. So a model that cannot tell items apart earns what chance earns:
    where relevant items win ties it would be perfect, and where ``torch.topk`` decides it depends on how the
    items happen to be numbered. The order does not depend on how users are cut into batches, nor on the
    device.

    The usual row has no ties and costs one ``torch.topk``. Only a row with a tie at the border of its list,
    where ``torch.topk`` picks arbitrary members of the tied group, is looked at in full.

    Args:
        scores: (B, N) real scores. ``-inf`` excludes an item: it is never in the list.
        k: length of the lists, 1 <= k <= N.
        users: (B,) int64 user of each row, for the hash. By default the rows are users 0 to B - 1.
        items: (N,) int64 item of each column, all different, each below 2^31; where a part of a catalog is
            scored. By default the columns are items 0 to N - 1.
        seed: chooses among the equally fair orders.

    Returns:
        items: (B, k) int64, and ``-1`` in the places that a row with fewer than k candidates cannot fill.
        values: (B, k) their scores; ``-inf`` where the item is ``-1``.

    Raises:
        TypeError: for a k or a seed that is no whole number.
        ValueError: for a k out of range, wrong shapes, or scores that are NaN (the message names the user).
    """
    k, seed = whole_number(k, "k"), whole_number(seed, "seed")
    if scores.ndim != 2:
        raise ValueError(f"scores must be (B, N), one row a user; got shape {tuple(scores.shape)}")
    n_rows, n_items = scores.shape
    if not 1 <= k <= n_items:
        raise ValueError(f"k must be between 1 and the number of items, {n_items}; got {k}")
    if users is None:
        users = torch.arange(n_rows, device=scores.device)  # (B,)
    elif users.shape != (n_rows,):
        raise ValueError(f"users must be ({n_rows},), one a row of scores; got {tuple(users.shape)}")
    users = users.to(scores.device)
    if items is None:
        items = torch.arange(n_items, device=scores.device)  # (N,)
    elif items.shape != (n_items,):
        raise ValueError(f"items must be ({n_items},), one a column of scores; got {tuple(items.shape)}")
    items = items.to(scores.device)
    refuse_nan(scores, users)

    values, columns = scores.topk(min(k + 1, n_items))  # (B, k + 1): one more shows a tie at the border
    if k < n_items:
        border = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)  # (B,)
        values, columns = values[:, :k], columns[:, :k]  # (B, k)
        tied = border.nonzero().flatten()  # (T,)
        for rows in tied.split(max(1, _BLOCK // n_items)) if len(tied) else ():
            block, last = (
                scores[rows],
                values[rows, -1:],
            )  # (R, N), and (R, 1) the score that the tied group shares
            row, column = (block == last).nonzero(as_tuple=True)  # (T,), (T,)
            key = torch.where(block > last, _MASK, -1).int()  # (R, N): better items are in, worse are out,
            # and the hash picks among the tied
            key[row, column] = _tie_key(users[rows[row]], items[column], seed).int()
            columns[rows] = key.topk(k).indices
            values[rows] = block.gather(1, columns[rows])

    return _in_order(users, items[columns], values, seed)  # lists now have the right members


def rank_candidates(
    scores: Tensor, candidates: Tensor, *, users: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Puts given items in order, best first, with the rule for ties of ``rank_topk``.

    Args:
        scores: (B, C) real scores of the candidates.
        candidates: (B, C) int64 items; -1 is no item.
        users: (B,) int64 user of each row, for ties. By default the rows are users 0 to B - 1.
        seed: chooses among the equally fair orders of ties.

    Returns:
        items: (B, C) int64, best first; what is no item, or scored ``-inf``, is -1 and comes last.
        values: (B, C) their scores; ``-inf`` where the item is -1.

    Raises:
        TypeError: for a seed that is no whole number.
        ValueError: a score is NaN.
    """
    seed = whole_number(seed, "seed")
    if users is None:
        users = torch.arange(len(scores), device=scores.device)  # (B,)
    refuse_nan(scores, users)
    return _in_order(users, candidates, scores.masked_fill(candidates < 0, -torch.inf), seed)


def _in_order(users: Tensor, items: Tensor, values: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Sorts lists (B, k) by score, and ties by their hash."""
    ranked, order = values.sort(dim=1, descending=True)  # (B, k), (B, k)
    if ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] > -torch.inf)).any():
        # By hash, then stably by score: ties keep the order of the hash.
        by_hash = _tie_key(users[:, None], items, seed).int().argsort(dim=1, descending=True)  # (B, k)
        ranked, second = values.gather(1, by_hash).sort(dim=1, descending=True, stable=True)  # (B, k)
        order = by_hash.gather(1, second)  # (B, k)
    values, items = ranked, items.gather(1, order)  # (B, k)
    return items.masked_fill(values == -torch.inf, -1), values


def _mix(x: Tensor) -> Tensor:
    """A well-mixed bijection of 31-bit integers (multiply and xor-shift, Mueller's constant)."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & _MASK
    return x ^ (x >> 16)


def _tie_key(users: Tensor, items: Tensor, seed: int) -> Tensor:
    """Pseudo-random keys in [0, 2^31), int64: for one user and seed, they put the items in a random order.

    Items of a user never share a key: an odd multiplier, a shift and ``_mix`` are all bijections of 31 bits.
    Only integer products below 2^62 are used, so every device computes the same.
    """
    start = _mix((users + _mix(users.new_tensor(seed & _MASK))) & _MASK)
    stride = _mix(start ^ 0x5BD1E995) | 1  # odd
    return _mix((items * stride + start) & _MASK)


# ------------------------------------------------------------------------------------ what a model is asked

# Scores held at once, float32: 32 MB suit a CPU's caches and memory, 256 MB keep a GPU busy.
_CHUNK_CPU, _CHUNK_GPU = 2**23, 2**26

LeftOut = Callable[[Tensor], tuple[Tensor, ...]]
"""Given users (b,), an index into their scores (b, n_items): what may not be in their lists."""


class Scorer(Protocol):
    """All that a ranking asks of a model. A module gets its users on its own device."""

    @property
    def n_items(self) -> int:
        """Size of the catalog."""

    def score(self, users: Tensor) -> Tensor:
        """(B,) int64 -> (B, n_items) real scores, higher is better; a tensor, or an array of numpy."""


def seen_in(interactions: Interactions) -> LeftOut:
    """Leaves out of each user's list the items of the user's events."""
    crow, items = interactions.csr()  # (n_users + 1,), (E,)

    def pairs(users: Tensor) -> tuple[Tensor, Tensor]:
        place, row = take_rows(crow, users.to(crow.device))  # (E',), (E',)
        return row, items[place]

    return pairs


def only(allowed: Tensor, left_out: LeftOut | None = None) -> LeftOut:
    """Leaves out all but the allowed items, and of these what else is to be left out.

    Args:
        allowed: (n_items,) bool.
        left_out: says what else is; see ``seen_in``.
    """

    def mask(users: Tensor) -> tuple[Tensor]:
        refused = (~allowed).repeat(len(users), 1)  # (b, n_items)
        if left_out is not None:
            refused[tuple(index.to(refused.device) for index in left_out(users))] = True
        return (refused,)

    return mask


def score_batches(
    model: Scorer,
    users: Indices,
    left_out: LeftOut | None = None,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores users a batch at a time, with ``-inf`` for what is left out.

    Args:
        model: anything with ``score`` and ``n_items``; in training mode it is put in evaluation mode
            meanwhile.
        users: (U,) whole numbers.
        left_out: says which items are; see ``seen_in``.
        batch_size: users scored at once; by default as many as make about 8 million scores on a CPU.
        progress: show a bar.

    Yields:
        the users of a batch (b,), where the model is; their scores (b, n_items), which are written over by
        the next batch.

    Raises:
        TypeError: users or a batch size that are no whole numbers, or scores that are no tensor or array.
        ValueError: a batch size below 1, or scores that are not (b, n_items) real numbers.
    """
    device, users = _device(model), integer_indices(users, "users")
    if batch_size is None:
        batch_size = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU) // model.n_items)
    batch_size = whole_number(batch_size, "batch_size", at_least=1)
    work = None
    with torch.no_grad(), _evaluation_mode(model):
        for batch in progress_bar(users.split(batch_size), "ranking", enabled=progress):
            asked = batch.to(device)  # (b,)
            scores = _checked_scores(model.score(asked), asked, model.n_items)  # (b, N)
            if work is None:
                work = torch.empty_like(scores, memory_format=torch.contiguous_format)
            # Written to below: a copy, for the model may have returned a view of its own state, and always in
            # the same memory, for fresh pages cost more than the copy itself.
            scores = work[: len(asked)].copy_(scores)  # (b, N)
            if left_out is not None:
                scores[tuple(index.to(scores.device) for index in left_out(asked))] = -torch.inf
            yield asked, scores


def top_lists(
    model: Scorer,
    users: Indices,
    k: int,
    left_out: LeftOut | None = None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """The ``k`` best items of each user without what is left out; memory does not grow with U x n_items.

    Args:
        model: see ``score_batches``, and there for the arguments that are not listed.
        users: (U,) whole numbers.
        k: length of the lists.
        left_out: says which items are; see ``seen_in``.
        batch_size: users scored at once.
        seed: breaks ties.
        progress: show a bar.

    Returns:
        items (U, k) int64, -1 where a user has fewer left; their scores (U, k). On the users' device.
    """
    users = integer_indices(users, "users")
    batches = score_batches(model, users, left_out, batch_size=batch_size, progress=progress)
    lists = [rank_topk(scores, k, users=asked, seed=seed) for asked, scores in batches]
    if not lists:
        empty = torch.zeros(0, k, device=users.device)
        return empty.long(), empty
    items, values = (torch.cat(parts).to(users.device) for parts in zip(*lists, strict=True))
    return items, values


# ------------------------------------------------------------------------------------- what is to be found


class Fingerprint(NamedTuple):
    """What an evaluation is over, in texts that are equal where it is the same.

    Attributes:
        catalog: users and items, by their ids.
        relevant: who should find what.
        seen: what was left out.
        sample: how candidates were drawn, where not all items compete.
    """

    catalog: str
    relevant: str
    seen: str
    sample: str = ""


@dataclass(frozen=True)
class HeldOut:
    """Who is ranked and what they should find, on the CPU. A pair is a key, user * n_items + item.

    Attributes:
        users: (U,) int64 ascending: the users with something to find.
        n_relevant: (U,) int64, how many items each should find: distinct held-out items that were not seen.
        relevant: (R,) int64 ascending keys of those items.
        n_items: size of the catalog.
    """

    users: Tensor
    n_relevant: Tensor
    relevant: Tensor
    n_items: int

    @classmethod
    def of(
        cls, held_out: Interactions, seen: Interactions | None = None, users: Indices | None = None
    ) -> "HeldOut":
        """What there is to find among held-out events.

        Args:
            held_out: the events.
            seen: events whose items are not to be found again by their user.
            users: (V,) whole numbers, restricts it to these users.

        Raises:
            TypeError: events that are not ``Interactions``, or ``users`` that are no whole numbers.
            ValueError: the two are of different data sets, ``users`` are out of range, or there is nothing to
                find.
        """
        for events, name in ((held_out, "test"), (seen, "seen")):
            if events is not None and not hasattr(events, "csr"):
                raise TypeError(
                    f"{name} must be Interactions, got {type(events).__name__}; "
                    "make them with Interactions.from_frame(frame)"
                )
        n_items = held_out.n_items
        if seen is not None:
            check_same_catalog(held_out, seen, "test and seen")
        relevant = _keys(held_out)  # (R,)
        if seen is not None:
            relevant = relevant[~_among(relevant, _keys(seen))]
        if users is not None:
            wanted = integer_indices(users, "users").cpu().unique()  # (V',)
            unknown = wanted[(wanted < 0) | (wanted >= held_out.n_users)]
            if len(unknown):
                raise ValueError(f"users must be between 0 and {held_out.n_users - 1}, got {int(unknown[0])}")
            relevant = relevant[_among(relevant // n_items, wanted)]
        if not len(relevant):
            raise ValueError(
                "there is no user to evaluate: none of those asked for has a test item outside of `seen`"
            )
        ranked, n_relevant = (relevant // n_items).unique_consecutive(return_counts=True)
        return cls(ranked, n_relevant, relevant, n_items)

    def hits(self, lists: Tensor) -> Tensor:
        """(U, k) lists, one a user -> (U, k) bool on the CPU: is it relevant?"""
        lists = lists.cpu()
        keys = self.users[:, None] * self.n_items + lists  # (U, k)
        return _among(keys, self.relevant) & (lists >= 0)  # an item of -1 would be the previous user's last

    def pairs(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """What some of ``self.users`` should find: (b,) -> the place in b (E,) and the item (E,) of each."""
        rows = torch.searchsorted(self.users, users.cpu())  # (b,)
        place, row = take_rows(offsets(self.n_relevant), rows)  # (E,), (E,)
        return row, self.relevant[place] % self.n_items

    def fingerprint(self, held_out: Interactions, seen: Interactions | None = None) -> Fingerprint:
        """Tells whether two evaluations are over the same; the arguments are those of ``of``."""
        sizes = torch.tensor([held_out.n_users, held_out.n_items], device="cpu")  # (2,)
        ids = (getattr(held_out, name, None) for name in ("user_ids", "item_ids"))
        return Fingerprint(
            catalog=_digest(sizes.numpy(), *(_hashes(index) for index in ids if index is not None)),
            relevant=_digest(self.relevant.numpy()),
            seen=_digest() if seen is None else _digest(_keys(seen).numpy()),
        )


def _digest(*arrays: np.ndarray) -> str:
    """A short text that differs where an array does."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _hashes(ids: pd.Index) -> np.ndarray:
    """Numbers that differ where an id does."""
    if not isinstance(ids, pd.MultiIndex):  # pairs have no type of their own
        ids = ids.infer_objects()  # whole numbers that are kept as objects are equal to others
    try:
        return pd.util.hash_pandas_object(ids, index=False, categorize=False).to_numpy()
    except (TypeError, ValueError):  # a mixture of types
        return np.frombuffer(repr(list(ids)).encode(), np.uint8)


def _keys(interactions: Interactions) -> Tensor:
    """(E,) ascending keys user * n_items + item of the distinct pairs, on the CPU."""
    crow, items = (x.cpu() for x in interactions.csr())
    return row_of_each(crow) * interactions.n_items + items


def _among(values: Tensor, table: Tensor) -> Tensor:
    """Which of the values are in an ascending table: bool, shaped like values."""
    if not len(table):
        return torch.zeros_like(values, dtype=torch.bool)
    return table[torch.searchsorted(table, values).clamp(max=len(table) - 1)] == values


def _device(model: object) -> torch.device:
    """Where the model wants its users: its own say, else where its parameters are, else the CPU."""
    device = getattr(model, "device", None)
    if isinstance(device, torch.device):
        return device
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))


def _checked_scores(scores: Any, users: Tensor, n_items: int) -> Tensor:
    """The scores as a tensor, if they are what they should be."""
    if isinstance(scores, np.ndarray) and scores.dtype.kind == "f":
        # A tensor takes neither memory that must not be written nor negative strides; then it is copied.
        scores = torch.as_tensor(np.require(scores, requirements=["C", "W"]), device="cpu")
    if not isinstance(scores, Tensor):
        kind = f"an array of {scores.dtype}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise TypeError(f"model.score must return a tensor or an array of real scores; got {kind}")
    if scores.shape != (len(users), n_items) or not scores.is_floating_point():
        raise ValueError(
            f"model.score must return ({len(users)}, {n_items}) real scores for {len(users)} users; "
            f"got {tuple(scores.shape)} {scores.dtype}"
        )
    return scores


@contextmanager
def _evaluation_mode(model: object) -> Iterator[None]:
    """Dropout off meanwhile; afterwards exactly those modules train again that did before."""
    training = [x for x in model.modules() if x.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
