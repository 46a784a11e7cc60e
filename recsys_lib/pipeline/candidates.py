"""The two stages: what the retriever finds, what the re-ranker makes of it, and the one order of both."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_lib.pipeline.asked import Asked
from recsys_lib.pipeline.latency import Stages
from recsys_lib.ranking import rank_candidates, rank_topk
from recsys_lib.retrieval import Index

__all__ = ["TwoStages", "continued"]


@dataclass(frozen=True)
class TwoStages:
    """Retrieves candidates and re-ranks them; see ``Pipeline`` for which these are.

    Attributes:
        index: searches the retriever's vectors; None scores the whole catalog.
        n_items: size of the catalog.
        n_candidates: new items that are ranked anew.
    """

    index: Index | None
    n_items: int
    n_candidates: int

    def scores(self, asked: Asked) -> Tensor:
        """Scores (B, n_items) of the order that the two stages make."""
        rows = torch.arange(len(asked), device=asked.ties.device)  # (B,)
        scores = asked.score(rows)  # (B, n_items)
        if asked.rerank is None:
            return scores
        had = self._had(asked)
        items, values = rank_topk(scores, self._length(1, had), users=asked.ties)  # (B, L)
        ranked, rescored, _, down = self._reranked(asked, items, values, had)
        scores = scores + down  # (B, n_items)
        row, column = (ranked >= 0).nonzero(as_tuple=True)  # (N,), (N,)
        scores[row, ranked[row, column]] = rescored[row, column]
        return scores

    def ranked(self, asked: Asked, k: int, refused: Tensor | None, stages: Stages) -> tuple[Tensor, Tensor]:
        """The k best of the two stages: items (B, k') and scores (B, k'), k' at least k."""
        had = self._had(asked)
        length = self._length(k, had if refused is None else had & ~refused)
        with stages.timed("retrieve"):
            items, values = self._retrieve(asked, length, refused)  # (B, L)
        if asked.rerank is None:
            return items, values
        with stages.timed("rerank"):
            ranked, scores, chosen, down = self._reranked(asked, items, values, had)
            stages.candidates += int(chosen.sum())
            items = torch.cat([ranked, items.masked_fill(chosen, -1)], dim=1)  # (B, C + L)
            values = torch.cat([scores, values + down], dim=1)  # (B, C + L)
            items, values = rank_candidates(values, items, users=asked.ties)
        return items[:, :length], values[:, :length]

    def _retrieve(self, asked: Asked, length: int, refused: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best items (B, L) of the retriever that are not refused, (B, n_items) bool, with scores."""
        rows = torch.arange(len(asked), device=asked.ties.device)  # (B,)
        if self.index is None or asked.vectors is None:
            return self._scanned(asked, rows, length, refused)
        items = torch.full((len(asked), length), -1, device=asked.ties.device)  # (B, L)
        values = torch.full((len(asked), length), -torch.inf, device=asked.ties.device)  # (B, L)
        known, vectors = asked.vectors()  # (B,), (U, d)
        exclude = None
        if refused is not None:
            # Where most is refused, an index hands out nearly all that it holds: it is quicker to score
            # everything, and exact.
            few_left = 2 * refused.sum(dim=1) > self.n_items  # (B,)
            known, vectors = known & ~few_left, vectors[~few_left[known]]  # (B,), (U', d)
            row, item = refused[known].nonzero(as_tuple=True)  # (R,), (R,)
            exclude = list(item.split(row.bincount(minlength=int(known.sum())).tolist()))
        if bool(known.any()):
            users = asked.ties[known]
            items[known], values[known] = self.index.search(vectors, length, exclude=exclude, users=users)
        if not bool(known.all()):
            without = rows[~known]
            items[without], values[without] = self._scanned(asked, without, length, refused)
        return items, values

    def _scanned(
        self, asked: Asked, rows: Tensor, length: int, refused: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same for some rows (b,), by the scores of all items."""
        scores = asked.score(rows)  # (b, n_items)
        if refused is not None:
            scores = scores.masked_fill(refused[rows], -torch.inf)
        return rank_topk(scores, length, users=asked.ties[rows])

    def _reranked(
        self, asked: Asked, items: Tensor, values: Tensor, had: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The second model on the candidates among what was retrieved.

        Args:
            asked: by whom.
            items: (B, L), best first, -1 for padding.
            values: (B, L) their scores.
            had: (B, n_items) bool, what each has had.

        Returns:
            candidates (B, C), best first; their scores (B, C); which of what was retrieved they are,
            (B, L) bool; and what is added to the retriever's scores of all else, (B, 1), so that they come
            after the candidates that are new.
        """
        assert asked.rerank is not None
        new = (items >= 0) & ~had.gather(1, items.clamp(min=0))  # (B, L)
        seen_so_far = new.cumsum(dim=1)  # (B, L)
        n = self.n_candidates
        chosen = (items >= 0) & ((seen_so_far < n) | ((seen_so_far == n) & new))  # (B, L): the first of a row
        width = max(1, int(chosen.sum(dim=1).max())) if len(items) else 1
        ranked, scores = asked.rerank(items[:, :width].masked_fill(~chosen[:, :width], -1))  # (B, C), (B, C)
        ranked, scores = ranked.to(asked.ties.device), scores.to(asked.ties.device, torch.float32)
        # Where anything is left, the last candidate is the n-th new one, whatever else may be listed.
        last = values.masked_fill(~(chosen & new), torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
        fresh = (ranked >= 0) & ~had.gather(1, ranked.clamp(min=0))  # (B, C)
        worst = scores.masked_fill(~fresh, torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
        down = (worst - last - 1).nan_to_num(posinf=0.0, neginf=0.0)  # (B, 1)
        return ranked, scores, chosen, down

    def _had(self, asked: Asked) -> Tensor:
        size = (len(asked), self.n_items)
        had = torch.zeros(size, dtype=torch.bool, device=asked.ties.device)  # (B, n_items)
        had[asked.had] = True
        return had

    def _length(self, k: int, open_again: Tensor) -> int:
        """How many to retrieve, so that the candidates are among them."""
        again = int(open_again.sum(dim=1).max()) if len(open_again) else 0
        return min(self.n_items, max(k, self.n_candidates + again))


def continued(items: Tensor, values: Tensor, more: Tensor, more_values: Tensor) -> tuple[Tensor, Tensor]:
    """Lists (B, P), with scores, followed by what longer ones (B, L) have beside."""
    there = (more[:, :, None] == items[:, None, :]).any(dim=2)  # (B, L)
    order = (there | (more < 0)).to(torch.int8).argsort(dim=1, stable=True)  # (B, L) what is new comes first
    rest = more.masked_fill(there, -1).gather(1, order)  # (B, L)
    score = more_values.masked_fill(there, -torch.inf).gather(1, order)  # (B, L)
    return torch.cat([items, rest], dim=1), torch.cat([values, score], dim=1)
