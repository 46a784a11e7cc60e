"""Who is asked for: users of the fit, people with a history, or texts, as what the stages need of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys_lib.data.ragged import offsets, row_of_each
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.histories import with_times
from recsys_lib.models.core.two_sides import TwoSides
from recsys_lib.ranking import rank_candidates

__all__ = ["Asked", "ask_for_histories", "ask_for_texts", "ask_for_users", "reads_texts"]


@dataclass(frozen=True)
class Asked:
    """Those for whom lists are made.

    Attributes:
        ties: (B,) int64, by which the order of ties is drawn.
        had: rows (E,) and items (E,) of what each has had.
        score: rows (b,) -> (b, n_items), the retriever's scores.
        vectors: the rows that have a vector, (B,) bool, and the vectors (U, d), for an index to search with;
            None where the retriever has none.
        rerank: candidates (B, C), -1 for padding -> items and scores (B, C), best first; None keeps the
            order of the retriever.
    """

    ties: Tensor
    had: tuple[Tensor, Tensor]
    score: Callable[[Tensor], Tensor]
    vectors: Callable[[], tuple[Tensor, Tensor]] | None
    rerank: Callable[[Tensor], tuple[Tensor, Tensor]] | None

    def __len__(self) -> int:
        return len(self.ties)


def ask_for_users(retriever: Recommender, reranker: Any, users: Tensor, had: tuple[Tensor, Tensor]) -> Asked:
    """Users of the fit.

    Args:
        retriever: the first model.
        reranker: the second, or None.
        users: (B,) int64, on the retriever's device.
        had: rows (E,) and items (E,) of what each has had.
    """
    vectors = None
    if isinstance(retriever, TwoSides):
        crow = retriever.history_crow if retriever.reads_histories else None
        known = (retriever.user_known if crow is None else crow.diff() > 0)[users]  # (B,)
        vectors = lambda: (known, retriever.encode_users(users[known]))  # noqa: E731
    rerank = None
    if reranker is not None and hasattr(reranker, "rank"):
        rerank = lambda candidates: reranker.rank(users, candidates)  # noqa: E731
    elif reranker is not None:
        rerank = lambda candidates: _picked(reranker.score(users), candidates, users)  # noqa: E731
    return Asked(
        ties=users,
        had=had,
        score=lambda rows: retriever.score(users[rows]),
        vectors=vectors,
        rerank=rerank,
    )


def ask_for_histories(
    retriever: Recommender,
    reranker: Any,
    histories: list[Tensor],
    timestamps: Sequence[Sequence[int] | Tensor] | None,
) -> Asked:
    """People by their histories.

    Args:
        retriever: the first model.
        reranker: the second, or None.
        histories: B of item indices, each oldest first, on the retriever's device.
        timestamps: B of seconds, for models that read the time.
    """
    device = retriever.device
    lengths = torch.tensor([len(one) for one in histories], dtype=torch.int64, device=device)  # (B,)
    ties = torch.arange(len(histories), device=device)  # (B,)

    def score(part: Any, rows: Tensor) -> Tensor:
        chosen = rows.tolist()
        times = None if timestamps is None else [timestamps[row] for row in chosen]
        return with_times(part.score_histories, [histories[row] for row in chosen], timestamps=times)

    def rank(candidates: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(reranker, "rank_histories"):
            return with_times(reranker.rank_histories, histories, candidates, timestamps=timestamps)
        return _picked(score(reranker, ties), candidates, ties)

    vectors = None
    if isinstance(retriever, TwoSides):
        told = [one for one in histories if len(one)]

        def vectors() -> tuple[Tensor, Tensor]:
            return lengths > 0, retriever.encode_users(told) if told else torch.zeros(0, 1, device=device)

    return Asked(
        ties=ties,
        had=(row_of_each(offsets(lengths)), torch.cat([ties[:0], *histories])),
        score=lambda rows: score(retriever, rows),
        vectors=vectors,
        rerank=None if reranker is None else rank,
    )


def ask_for_texts(retriever: Recommender, reranker: Any, texts: Sequence[str]) -> Asked:
    """What fits a text: what the retriever's vectors find, or else what the re-ranker says of all items.

    Args:
        retriever: the first model.
        reranker: the second, or None.
        texts: B of them.

    Raises:
        ValueError: neither reads texts.
    """
    device = retriever.device
    ties = torch.arange(len(texts), device=device)  # (B,)
    had = ties[:0], ties[:0]
    if not _reads_texts(retriever) and hasattr(reranker, "score_texts"):
        score = lambda rows: reranker.score_texts([texts[row] for row in rows.tolist()]).to(device)  # noqa: E731
        return Asked(ties=ties, had=had, score=score, vectors=None, rerank=None)
    if not isinstance(retriever, TwoSides):
        raise ValueError(
            f"the retriever of this Pipeline, {type(retriever).__name__}, reads no text; take one that "
            f'does, such as TwoTower(item_tower="text"), or a reranker that does, such as CrossEncoder'
        )
    encoded = retriever.encode_items(list(texts))  # (B, d); it says why where it reads none
    everyone = torch.ones(len(texts), dtype=torch.bool, device=device)  # (B,)
    rerank = None
    if hasattr(reranker, "rank_texts"):
        rerank = lambda candidates: reranker.rank_texts(texts, candidates)  # noqa: E731
    return Asked(
        ties=ties,
        had=had,
        score=lambda rows: encoded[rows] @ retriever.encode_items().mT,
        vectors=lambda: (everyone, encoded),
        rerank=rerank,
    )


def reads_texts(retriever: Any, reranker: Any) -> bool:
    """Whether these parts answer for a text."""
    return _reads_texts(retriever) or hasattr(reranker, "score_texts")


def _reads_texts(retriever: Any) -> bool:
    return isinstance(retriever, TwoSides) and retriever.reads_texts


def _picked(scores: Tensor, candidates: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates (B, C) by their scores among those of all items (B, n_items)."""
    mine = scores.gather(1, candidates.clamp(min=0).to(scores.device))  # (B, C)
    return rank_candidates(mine, candidates.to(scores.device), users=users)
