"""How easily a list is moved: false accounts, and how far an explanation of a list can be believed.

The attacks are here to be defended against, and are to be run on one's own models and data alone.
"""

import dataclasses
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import Indices, integer_indices, whole_number
from recsys_lib.data import Interactions
from recsys_lib.data.interactions import merge
from recsys_lib.ranking import Scorer, seen_in, top_lists

__all__ = [
    "ATTACKS",
    "account_signs",
    "counterfactual",
    "fewest_to_fall_behind",
    "hits",
    "inject",
    "overlap",
    "score_drop",
    "unusual",
]

ATTACKS = ("random", "bandwagon", "segment")

ScoreHistories = Callable[[list[Tensor]], Tensor]


# ------------------------------------------------------------------------------------------- false accounts


def inject(
    interactions: Interactions,
    targets: Indices,
    kind: str,
    n_accounts: int,
    filler: int,
    generator: torch.Generator,
    *,
    segment: Tensor | Sequence[int] = (),
    pool: int = 100,
) -> Interactions:
    """The events, and those of false accounts that push some items.

    Each account likes all targets and ``filler`` other items, none twice:

    - ``"random"``: drawn from the whole catalog; needs no knowledge.
    - ``"bandwagon"``: drawn from the ``pool`` items most liked; needs to know what is famous.
    - ``"segment"``: drawn from ``segment``: what the people to be reached like, or one person's own items.

    The attacks on ratings also give low ratings (love-hate, nuke); where all events are likes there are none.

    Args:
        interactions: of genuine people.
        targets: (T,) the items that are pushed, T at least 1.
        kind: one of ``ATTACKS``.
        n_accounts: false accounts; 0 gives the events as they are, with nobody new.
        filler: other items of each account.
        generator: draws them, on the CPU.
        segment: items, for ``"segment"`` alone.
        pool: how many items count as famous.

    Returns:
        Events of n_users + n_accounts people, the genuine ones with the numbers that they had. False events
        have the highest rating that there is and times drawn from the genuine ones.

    Raises:
        ValueError: an unknown kind, targets that are no items, or fewer items to draw from than ``filler``.

    Source: Lam and Riedl 2004, "Shilling Recommender Systems for Fun and Profit"; Mobasher, Burke, Bhaumik,
    Williams 2007, "Toward Trustworthy Recommender Systems"; Gunes, Kaleli, Bilge, Polat 2014, "Shilling
    Attacks against Recommender Systems: a Comprehensive Survey".
    """
    n_accounts = whole_number(n_accounts, "n_accounts", at_least=0)
    filler = whole_number(filler, "filler", at_least=0)
    wanted = integer_indices(targets, "targets").cpu().unique()  # (T,)
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= interactions.n_items:
        raise ValueError(f"targets must be of the {interactions.n_items} items, got {wanted.tolist()}")
    if kind == "random":
        choice = torch.arange(interactions.n_items)  # (C,)
    elif kind == "bandwagon":
        choice = interactions.item_counts().cpu().argsort(descending=True, stable=True)[:pool]  # (C,)
    elif kind == "segment":
        choice = integer_indices(segment, "segment").cpu().unique()  # (C,)
    else:
        raise ValueError(f"kind must be one of {', '.join(ATTACKS)}, got {kind!r}")
    choice = choice[~torch.isin(choice, wanted)]
    if filler > len(choice):
        raise ValueError(f"filler={filler} is more than the {len(choice)} items that there are to draw from")
    device = interactions.items.device
    if not n_accounts:
        return interactions
    chance = torch.rand(n_accounts, len(choice), generator=generator)  # (A, C)
    others = choice[chance.topk(filler, dim=1).indices]  # (A, filler)
    items = torch.cat([wanted.expand(n_accounts, -1), others], dim=1).to(device)  # (A, T + filler)
    n, width = interactions.n_users, len(wanted) + filler
    size = n_accounts * width
    when = torch.randint(len(interactions), (size,), generator=generator).to(device)  # (A (T + filler),)
    ratings = interactions.ratings
    best = ratings[~ratings.isnan()].max() if bool((~ratings.isnan()).any()) else ratings.new_tensor(1.0)
    ids = interactions.user_ids.append(_new_ids(interactions.user_ids, n_accounts))
    genuine = dataclasses.replace(interactions, n_users=n + n_accounts, user_ids=ids)
    false = dataclasses.replace(
        genuine,
        users=(n + torch.arange(n_accounts, device=device)).repeat_interleave(width),
        items=items.flatten(),
        ratings=best.expand(size).clone(),
        timestamps=interactions.timestamps[when],
        rows=torch.full((size,), -1, device=device),
    )
    return merge(genuine, false)


def _new_ids(ids: pd.Index, n: int) -> pd.Index:
    """Ids for new accounts, of the kind that the catalog has."""
    if pd.api.types.is_integer_dtype(ids.dtype):
        return pd.Index(range(int(ids.max()) + 1, int(ids.max()) + 1 + n), dtype=ids.dtype)
    return pd.Index([f"account-{number}" for number in range(n)])


def hits(model: Scorer, targets: Indices, seen: Interactions, users: Tensor, k: int = 10) -> Tensor:
    """Whose lists hold some items: (U, T) float64, 1 or 0; a column's mean is that item's hit share.

    Args:
        model: fitted.
        targets: (T,) items.
        seen: what is not recommended again.
        users: (U,) genuine people, who should not have the targets yet.
        k: length of the lists.

    Source: the hit ratio of Mobasher et al. 2007.
    """
    targets = integer_indices(targets, "targets").to(users.device)  # (T,)
    lists, _ = top_lists(model, users, k, seen_in(seen), progress=False)  # (U, k)
    return (lists[:, :, None] == targets).any(dim=1).double().cpu()  # (U, T)


def account_signs(interactions: Interactions, k: int = 20) -> pd.DataFrame:
    """What tells an account from others without reading what it wants: a row a user, three numbers.

    - ``similarity``: mean cosine to the ``k`` most similar other accounts, "DegSim".
    - ``fame``: mean logarithm of how many people like its items.
    - ``length``: logarithm of how many items it has.

    Users without events get zeros.

    Source: Burke, Mobasher, Williams, Bhaumik 2006, "Classification Features for Attack Detection in
    Collaborative Recommender Systems"; the similarity after Chirita, Nejdl, Zamfir 2005,
    "Preventing Shilling Attacks in Online Recommender Systems".
    """
    X = interactions.to("cpu").matrix().to_dense().clamp(max=1.0)  # (n_users, n_items)
    count = X.sum(dim=1)  # (n_users,)
    unit = X / count.clamp(min=1.0).sqrt()[:, None]  # (n_users, n_items)
    cosine = (unit @ unit.mT).fill_diagonal_(0.0)  # (n_users, n_users)
    near = cosine.topk(min(k, len(X) - 1), dim=1)[0].mean(dim=1)  # (n_users,)
    fame = X @ X.sum(dim=0).clamp(min=1.0).log() / count.clamp(min=1.0)  # (n_users,)
    columns = {"similarity": near, "fame": fame, "length": count.clamp(min=1.0).log()}
    return pd.DataFrame({name: value.double().numpy() for name, value in columns.items()})


def unusual(signs: pd.DataFrame) -> Tensor:
    """How far an account is from the usual: (U,) float64, the length of its robust z-scores.

    z is the distance from the median over 1.4826 times the median absolute deviation, which false accounts
    that are few can hardly move (Hampel 1974, "The Influence Curve and its Role in Robust Estimation").
    """
    away = signs - signs.median()
    spread = (1.4826 * away.abs().median()).clip(lower=1e-9)
    return torch.tensor((away / spread).pow(2).sum(axis=1).pow(0.5).to_numpy())


# --------------------------------------------------------------------------------------------- explanations


def score_drop(
    score_histories: ScoreHistories, histories: Sequence[Tensor], items: Tensor, gone: Sequence[Tensor]
) -> Tensor:
    """How much an item's score falls when events are deleted from the history: the test of an explanation.

    The unit is the standard deviation of the person's scores over all items, before.

    Args:
        score_histories: B histories -> (B, n_items).
        histories: B tensors (L,) of items.
        items: (B,) what was recommended.
        gone: B tensors of *places* in the history, those that the explanation names.

    Returns:
        (B,) float64, above 0 where the score fell.

    Source: DeYoung et al. 2020, "ERASER: A Benchmark to Evaluate Rationalized NLP Models", section 4,
    comprehensiveness; Serrano and Smith 2019, "Is Attention Interpretable?".
    """
    left = [_without(history, places) for history, places in zip(histories, gone, strict=True)]
    before = score_histories(list(histories)).double().cpu()  # (B, n_items)
    after = score_histories(left).double().cpu()  # (B, n_items)
    at = items.cpu()[:, None]  # (B, 1)
    fall = (before.gather(1, at) - after.gather(1, at))[:, 0]  # (B,)
    return fall / before.std(dim=1).clamp(min=1e-12)


def _without(history: Tensor, places: Tensor) -> Tensor:
    keep = torch.ones(len(history), dtype=torch.bool)
    keep[places.cpu()] = False
    return history[keep.to(history.device)]


def overlap(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """What share of the one explanation is in the other: (B,) float64, for sets of places or of items.

    Args:
        first: B tensors (n,), none empty.
        second: B tensors of the same sizes.
    """
    shares = []
    for a, b in zip(first, second, strict=True):
        if len(a) != len(b) or not len(a):
            raise ValueError(f"needs explanations of one size, above 0; got {len(a)} and {len(b)}")
        shares.append(torch.isin(a, b).double().mean())
    return torch.stack(shares).cpu() if shares else torch.zeros(0, dtype=torch.float64)


def counterfactual(
    score_histories: ScoreHistories, history: Tensor, item: int, k: int = 10, at_most: int = 10
) -> Tensor | None:
    """A small set of events without which an item would not be in the list: "because of these".

    Greedy: the event goes without which the item is lowest, by its lead over the k-th best of the others,
    until it is out of the list; then each one that was not needed comes back. What is left cannot be made
    smaller by taking a single event out of it; a smaller set of others may exist. Items of the history, also
    those deleted, are in no list.

    Args:
        score_histories: B histories -> (B, n_items).
        history: (L,) distinct items.
        item: in the list of length ``k`` that the history gives.
        k: length of the list.
        at_most: deletions after which to give up.

    Returns:
        (n,) int64 places in the history, ascending; None where ``at_most`` do not suffice.

    Source: Ghazimatin, Balalau, Saha Roy, Weikum 2020, "PRINCE: Provider-side Interpretability with
    Counterfactual Explanations in Recommender Systems", which has the problem; the search here is the plain
    greedy one, for any model that reads histories.
    """

    def leads(sets: list[list[int]]) -> Tensor:
        left = [_without(history, torch.tensor(places, dtype=torch.int64)) for places in sets]
        scores = score_histories(left).double().cpu()  # (n, n_items)
        own = scores[:, item].clone()  # (n,)
        scores[:, history.cpu()] = -torch.inf
        scores[:, item] = -torch.inf
        return own - scores.topk(k, dim=1)[0][:, -1]  # (n,)

    if leads([[]])[0] < 0:
        raise ValueError(f"item {item} is not among the first {k} of this history")
    gone: list[int] = []
    while True:
        rest = [place for place in range(len(history)) if place not in gone]
        if len(gone) >= min(at_most, len(history) - 1):
            return None
        lead = leads([[*gone, place] for place in rest])  # (n,)
        gone.append(rest[int(lead.argmin())])
        if lead.min() < 0:
            break
    for place in list(gone[:-1]):
        fewer = [other for other in gone if other != place]
        if leads([fewer])[0] < 0:
            gone = fewer
    return torch.tensor(sorted(gone))


def fewest_to_fall_behind(item: Tensor, rival: Tensor) -> Tensor | None:
    """The smallest set of events without which a rival is ahead, where the contributions of events add up.

    Exact: each event that goes takes its own lead with it, so the largest leads go first.

    Args:
        item: (L,) what each event adds to the item's score; with EASE the row of B that it is.
        rival: (L,) what it adds to the rival's.

    Returns:
        (n,) int64 places, ascending; none where the rival is ahead already; None where it never is.
    """
    lead = item.double() - rival.double()  # (L,)
    order = lead.argsort(descending=True, stable=True)  # (L,)
    left = lead.sum() - torch.cat([lead.new_zeros(1), lead[order].cumsum(0)])  # (L + 1,)
    behind = (left[:-1] < 0).nonzero().flatten()  # without all events nothing is recommended
    return order[: int(behind[0])].sort()[0] if len(behind) else None
