"""Retrieve, then re-rank: the stages of a large recommender as one recommender.

::

    model = Pipeline(EASE(), reranker=SASRec(), items=catalog).fit(split.history)
    model.recommend_frame("C000588", k=10, exclude=bought, blocked=sold_out, at_most=3)
    model.recommend_histories({"a visitor": ["SKU-1", "SKU-7"]}, diversity=0.3)
    model.save_pretrained("models/shop")

A cheap model looks at the whole catalog, a dear one at what the first has found; then come the rules of the
house: what may be shown, how many of a kind, how different from each other.
"""

import inspect
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each, take_rows
from recsys_lib.devices import in_float32
from recsys_lib.files import write_whole
from recsys_lib.models.core.checks import check_catalog, check_histories, check_interactions, check_length
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.frames import as_list, ids_of, left_out_of, lists_frame, positions
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.loading import load
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.saving import CONFIG_FILE
from recsys_lib.models.core.two_sides import TwoSides
from recsys_lib.progress import progress_bar
from recsys_lib.ranking import rank_candidates, rank_topk
from recsys_lib.retrieval import ExactIndex, FaissIndex, Index

__all__ = ["Pipeline", "Stages", "at_most_of_a_group", "maximal_marginal_relevance"]

_SCORES_AT_ONCE = 2**22  # of the whole catalog, held while lists are made
_PARTS = ("retriever", "reranker")
_INDEX_FILE, _ITEMS_FILE = "index.safetensors", "items.parquet"


@dataclass
class Stages:
    """Where the time of lists went, in seconds. Calls that are given the same report add up in it.

    Attributes:
        retrieve: looking through the catalog.
        rerank: the second model, on the candidates.
        filter: what may be listed, and how many of a group.
        diversify: making the list less alike.
        lists: how many were made.
        candidates: how many the second model has scored.
    """

    retrieve: float = 0.0
    rerank: float = 0.0
    filter: float = 0.0
    diversify: float = 0.0
    lists: int = 0
    candidates: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds().values())

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, by its name."""
        return {name: getattr(self, name) for name in ("retrieve", "rerank", "filter", "diversify")}

    def add(self, other: "Stages") -> None:
        """Adds what another report holds."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {1000 * spent:.1f} ms" for name, spent in self.seconds().items())
        return f"{self.lists} lists in {1000 * self.total:.1f} ms: {parts}"

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)


def maximal_marginal_relevance(relevance: Tensor, similarity: Tensor, k: int, diversity: float) -> Tensor:
    """Picks items one by one: relevant, and unlike those that were picked before.

        argmax over i not in S of  (1 - diversity) Rel(i) - diversity max over j in S of Sim(i, j)

    with S what was picked; the first is the most relevant. Carbonell and Goldstein (1998), The use of MMR,
    diversity-based reranking for reordering documents and producing summaries, section 2; their lambda is
    1 - diversity. Of equal items the one that stands first is taken.

    Args:
        relevance: (C,) of each item, in the unit of ``similarity``.
        similarity: (C, C) of each pair.
        k: how many to pick, at most C.
        diversity: from 0, the order of relevance, to 1, which asks for relevance only once.

    Returns:
        (k,) int64 places in ``relevance``, in the order they were picked.

    Raises:
        TypeError: ``k`` is no whole number.
        ValueError: other shapes, or a k or a diversity out of range.
    """
    n, k = len(relevance), whole_number(k, "k", at_least=1)
    if relevance.ndim != 1 or similarity.shape != (n, n):
        raise ValueError(
            f"similarity must be (C, C) for the C = {n} relevances, got {tuple(similarity.shape)}"
        )
    if k > n:
        raise ValueError(f"k must be at most the {n} items there are, got {k}")
    _check_share(diversity, "diversity")
    if not k or not n:
        return torch.zeros(0, dtype=torch.int64, device=relevance.device)
    picked = [int(relevance.argmax())]
    nearest = similarity[:, picked[0]].clone()  # (C,) to what was picked
    free = torch.ones(n, dtype=torch.bool, device=relevance.device)  # (C,)
    while len(picked) < k:
        free[picked[-1]] = False
        gain = (1 - diversity) * relevance - diversity * nearest  # (C,)
        picked.append(int(gain.masked_fill(~free, -torch.inf).argmax()))
        nearest = torch.maximum(nearest, similarity[:, picked[-1]])
    return torch.tensor(picked, device=relevance.device)  # (k,)


def at_most_of_a_group(items: Sequence[int], groups: Sequence[frozenset[Any]], at_most: int) -> list[int]:
    """The places of a list that stay where no group may have more than so many.

    From the top down, an item stays if none of its groups is full.

    Args:
        items: n items, best first.
        groups: of every item of the catalog, the groups that it belongs to; perhaps none.
        at_most: of each group.
    """
    count: dict[Any, int] = {}
    kept = []
    for place, item in enumerate(items):
        mine = groups[item]
        if all(count.get(group, 0) < at_most for group in mine):
            kept.append(place)
            for group in mine:
                count[group] = count.get(group, 0) + 1
    return kept


@dataclass(frozen=True)
class _Asked:
    """Those for whom lists are made: users of the fit, people with a history, or texts.

    Attributes:
        ties: (B,) int64, by which the order of ties is drawn.
        had: rows (E,) and items (E,) of what each has had.
        score: rows (b,) -> (b, n_items), the retriever's scores.
        vectors: the rows that have a vector, (B,) bool, and the vectors (U, d); None where there is no index.
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


class Pipeline(HistoryReader):
    """A retriever that looks through the catalog, and a re-ranker that orders what it has found.

    **Candidates.** For each person the ``n_candidates`` best items of the retriever that the person has not
    had and that may be listed; and what the person has had, where it may be listed again and the retriever
    puts it among them. A filter therefore costs no candidate. The re-ranker orders them; all others follow in
    the order of the retriever, so that a list can be as long as the catalog. ``score`` gives numbers of that
    order: what is evaluated without the events of ``fit`` is what ``recommend`` lists without them.

    **Filters and diversity** are of lists, not of scores: ``recommend`` and its kin take ``allowed``,
    ``blocked``, ``at_most`` and ``diversity``, the latter two with the options as their defaults. With
    ``diversity`` the ``n_candidates`` best, or the ``k`` best of a longer list, are ordered by
    ``maximal_marginal_relevance``: relevance is the score, stretched to 0 to 1 over them, and similarity the
    cosine of the retriever's vectors, or where it has none the share of groups that two items have in common.
    Items of a list keep their scores, which then do not descend.

    **Whom it serves.** Users of the fit; people with a history, where all parts read histories; and a text,
    where the retriever reads texts (``TwoTower(item_tower="text")``): it is taken for the text of an item,
    and what is like it is found. A re-ranker that knows no texts is passed over then.

    **Parts.** Any recommender retrieves. Where it has vectors (``TwoTower``), an ``index`` can search them;
    its lists are those of ``score`` as far as it is exact. Anything with ``rank(users, candidates)`` or
    ``score(users)`` re-ranks; people with a history need ``rank_histories(histories, candidates)`` or
    ``score_histories(histories)``, and a text ``rank_texts(texts, candidates)``. ``fit`` fits both parts, the
    re-ranker after the retriever; ``assemble`` takes parts that are fitted.

    **Saved** as one folder, with the parts in folders of their own, each of which ``recsys_lib.load`` loads.
    """

    retriever: Recommender | None = data("finds candidates in the catalog", default=None, kw_only=False)
    index: Index | None = data(
        "searches the retriever's vectors; built by ``fit`` and ``assemble``", default=None, kw_only=False
    )
    reranker: Any = data("orders candidates", default=None, kw_only=False)
    items: pd.DataFrame | None = data(
        "a row an item, with its id in the column ``item_id`` or in the index; kept with the pipeline",
        default=None,
    )
    n_candidates: int = option("items that are ranked anew", default=100, at_least=1)
    group: str = option("column of ``items`` with an item's group or groups", default="genres")
    at_most: int | None = option("items of one group in a list", default=None, at_least=1)
    diversity: float = option(
        "weight of being unlike the items above, beside relevance", default=0.0, at_least=0, at_most=1
    )

    history_crow: Tensor = learned("(n_users + 1,) int64 offsets of what users have had")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")
    history_times: Tensor = learned("(E,) int64 seconds")

    _groups: list[frozenset[Any]] | None = learned("of every item, where ``items`` says")
    _table: pd.DataFrame | None = learned("``items`` in the order of the catalog")

    def __post_init__(self) -> None:
        """Starts without a table."""
        super().__post_init__()
        self._groups, self._table = None, None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the parts from the hub's mixin, which would take them apart as settings."""
        return super().__new__(cls)

    # ------------------------------------------------------------------------------------- made of its parts

    @property
    def catalog(self) -> pd.DataFrame:
        """The items in the order of their indices: ``item_id`` and the columns of ``items``.

        Raises:
            NotFittedError: before ``fit``.
        """
        self._check_fitted()
        if self._table is not None:
            return self._table
        return pd.DataFrame({"item_id": ids_of(self.item_ids, "Pipeline")})

    @property
    def reads_histories(self) -> bool:
        """Whether it serves people by their histories: whether all its parts do."""
        return all(_reads_histories(part) for part in self._stages())

    def _stages(self) -> list[Any]:
        return [part for part in (self.retriever, self.reranker) if part is not None]

    def _check_parts(self) -> None:
        if not isinstance(self.retriever, Recommender):
            raise TypeError(
                f"Pipeline needs a recommender as its retriever, got {type(self.retriever).__name__}; "
                f"write Pipeline(EASE(), ...)"
            )
        other = self.reranker
        if other is not None and not (hasattr(other, "rank") or hasattr(other, "score")):
            raise TypeError(f"a reranker needs rank() or score(), and {type(other).__name__} has neither")
        if self.index is None:
            return
        if not isinstance(self.retriever, TwoSides):
            raise ValueError(
                f"an index searches the vectors of a retriever such as TwoTower, and "
                f"{type(self.retriever).__name__} has none; leave index out"
            )
        if self.index.metric != "dot" and not self.retriever.normalize:
            raise ValueError(
                f"the retriever compares by the dot product and the index by the {self.index.metric}: "
                f'make the index with metric="dot"'
            )

    def _place(self, interactions: Interactions) -> torch.device:
        self._check_parts()
        assert self.retriever is not None
        return self.retriever._place(interactions)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        self._check_parts()
        self._read_items()
        start = time.perf_counter()
        for part in self._stages():
            if not hasattr(part, "fit"):
                continue  # made by its owner, ready for use
            left = None
            if self.max_seconds is not None:  # at least a moment, so that there is something to keep
                left = max(self.max_seconds - (time.perf_counter() - start), 0.01)
            options = {"device": interactions.items.device, "max_seconds": left, "progress": progress}
            part.fit(interactions, validation, **options)
        self._keep_own(interactions)

    @torch.no_grad()
    def assemble(self, interactions: Interactions) -> Self:
        """Makes the pipeline of parts that are fitted, without fitting them again.

        Args:
            interactions: what users have had, over the users and items of the parts. It lives where the
                retriever lives.

        Returns:
            The pipeline itself.

        Raises:
            NotFittedError: a part is not fitted.
            TypeError: not ``Interactions``, or a part that is none.
            ValueError: a part was fitted on other users or items.
        """
        check_interactions(interactions, "Pipeline.assemble")
        self._check_parts()
        assert self.retriever is not None
        for part in self._stages():
            if isinstance(part, Recommender):
                part._check_fitted()
                sizes = (part.n_users, part.n_items)
                where = f"Pipeline.assemble ({type(part).__name__})"
                check_catalog(interactions, sizes, part.user_ids, part.item_ids, where)
        start = time.perf_counter()
        self._n_users, self._n_items = interactions.n_users, interactions.n_items
        self.user_ids, self.item_ids = interactions.user_ids, interactions.item_ids
        try:
            self._read_items()
            self._keep_own(interactions.to(self.retriever.device))
        except BaseException:
            self._n_users = self._n_items = None  # half of it must not answer
            self.user_ids = self.item_ids = None
            raise
        self.eval()
        self.fit_seconds = time.perf_counter() - start
        return self

    def _keep_own(self, interactions: Interactions) -> None:
        """Keeps what users have had, and puts the retriever's vectors into the index."""
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items)
        self._keep("history_times", interactions.timestamps)
        if self.index is not None:
            assert isinstance(self.retriever, TwoSides)
            self.index.build(self.retriever.encode_items())

    def _read_items(self) -> None:
        """Brings the table of items into the order of the catalog."""
        self._groups, self._table = None, None
        if self.items is None:
            if self.at_most is not None:
                raise ValueError("at_most needs the items' groups: give items=, a frame with their column")
            return
        if not isinstance(self.items, pd.DataFrame):
            raise TypeError(f"items must be a DataFrame, got {type(self.items).__name__}")
        known = ids_of(self.item_ids, "Pipeline")
        by_id = self.items.set_index("item_id") if "item_id" in self.items.columns else self.items
        if not by_id.index.is_unique:
            raise ValueError(f"items holds {by_id.index[by_id.index.duplicated()][0]!r} more than once")
        if not by_id.index.isin(known).any():
            raise ValueError("items has no row of an item that the pipeline knows; look at its item_id")
        by_id = by_id.reindex(known)
        if self.group in by_id.columns:
            self._groups = [_as_groups(value) for value in by_id[self.group]]
        self._table = by_id.rename_axis("item_id").reset_index()

    def _keep_histories(self, interactions: Interactions) -> None:
        if not self.reads_histories:
            raise ValueError(self._no_histories())
        for part in self._stages():
            if not hasattr(part, "update_histories"):
                raise ValueError(
                    f"{type(part).__name__} has no update_histories, and would go on with old ones"
                )
        for part in self._stages():
            part.update_histories(interactions)
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items)
        self._keep("history_times", interactions.timestamps)

    def _no_histories(self) -> str:
        part = next(part for part in self._stages() if not _reads_histories(part))
        role = "retriever" if part is self.retriever else "reranker"
        return (
            f"the {role} of this Pipeline, {type(part).__name__}, knows users by number and reads no "
            f"histories; ask for users of the fit, or take another {role}"
        )

    # ------------------------------------------------------------------------------------------ who is asked

    def _of_users(self, users: Tensor) -> _Asked:
        """Users (B,) of the fit, on the pipeline's device."""
        assert self.retriever is not None
        retriever, reranker = self.retriever, self.reranker
        place, row = take_rows(self.history_crow, users)  # (E,), (E,)
        vectors = None
        if self.index is not None and isinstance(retriever, TwoSides):
            crow = retriever.history_crow if retriever.reads_histories else None
            known = retriever.user_known if crow is None else crow.diff() > 0  # (n_users,)
            vectors = lambda: (known[users], retriever.encode_users(users[known[users]]))  # noqa: E731
        rerank = None
        if reranker is not None and hasattr(reranker, "rank"):
            rerank = lambda candidates: reranker.rank(users, candidates)  # noqa: E731
        elif reranker is not None:
            rerank = lambda candidates: _picked(reranker.score(users), candidates, users)  # noqa: E731
        return _Asked(
            ties=users,
            had=(row, self.history_items[place]),
            score=lambda rows: retriever.score(users[rows]),
            vectors=vectors,
            rerank=rerank,
        )

    def _of_histories(
        self, histories: Sequence[Tensor | Sequence[int]], timestamps: Sequence[Any] | None
    ) -> _Asked:
        """People by their histories of item indices."""
        if not self.reads_histories:
            raise ValueError(self._no_histories())
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        items, lengths = items.to(self.device), lengths.to(self.device)
        read = list(items.split(lengths.tolist()))
        if timestamps is not None and [len(t) for t in timestamps] != lengths.tolist():
            raise ValueError("timestamps must have one entry for each item of each history")
        retriever, reranker = self.retriever, self.reranker
        ties = torch.arange(len(read), device=self.device)  # (B,)

        def asked(part: Any, rows: Tensor) -> Tensor:
            chosen = rows.tolist()
            those = [read[row] for row in chosen]
            if timestamps is None or "timestamps" not in inspect.signature(part.score_histories).parameters:
                return part.score_histories(those)
            return part.score_histories(those, timestamps=[timestamps[row] for row in chosen])

        vectors = None
        if self.index is not None and isinstance(retriever, TwoSides):
            known = lengths > 0  # (B,)
            told = [one for one in read if len(one)]

            def vectors() -> tuple[Tensor, Tensor]:
                return known, retriever.encode_users(told) if told else items.new_zeros(0, 1).float()

        rerank = None
        if reranker is not None and hasattr(reranker, "rank_histories"):
            rerank = lambda candidates: reranker.rank_histories(read, candidates)  # noqa: E731
        elif reranker is not None:
            rerank = lambda candidates: _picked(asked(reranker, ties), candidates, ties)  # noqa: E731
        return _Asked(
            ties=ties,
            had=(row_of_each(offsets(lengths)), items),
            score=lambda rows: asked(retriever, rows),
            vectors=vectors,
            rerank=rerank,
        )

    def _of_texts(self, texts: Sequence[str]) -> _Asked:
        """What is like a text."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a list of texts; write [text]")
        retriever, reranker = self.retriever, self.reranker
        if not isinstance(retriever, TwoSides):
            raise ValueError(
                f"the retriever of this Pipeline, {type(retriever).__name__}, reads no text; take one that "
                f'does, such as TwoTower(item_tower="text")'
            )
        encoded = retriever.encode_items(list(texts))  # (B, d)
        nothing = torch.zeros(0, dtype=torch.int64, device=self.device)  # (0,)
        everyone = torch.ones(len(texts), dtype=torch.bool, device=self.device)  # (B,)
        rerank = None
        if reranker is not None and hasattr(reranker, "rank_texts"):
            rerank = lambda candidates: reranker.rank_texts(texts, candidates)  # noqa: E731
        return _Asked(
            ties=torch.arange(len(texts), device=self.device),
            had=(nothing, nothing),
            score=lambda rows: encoded[rows] @ retriever.encode_items().mT,
            vectors=None if self.index is None else lambda: (everyone, encoded),
            rerank=rerank,
        )

    # --------------------------------------------------------------------------------------------- the stages

    def _retrieve(self, asked: _Asked, length: int, refused: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best items (B, L) of the retriever that are not refused, (B, n_items) bool, with scores."""
        rows = torch.arange(len(asked), device=self.device)  # (B,)
        if self.index is None or asked.vectors is None:
            return self._scanned(asked, rows, length, refused)
        items = torch.full((len(asked), length), -1, device=self.device)  # (B, L)
        values = torch.full((len(asked), length), -torch.inf, device=self.device)  # (B, L)
        known, vectors = asked.vectors()  # (B,), (U, d)
        if bool(known.any()):
            exclude = None
            if refused is not None:
                row, item = refused[known].nonzero(as_tuple=True)  # (R,), (R,)
                exclude = list(item.split(row.bincount(minlength=int(known.sum())).tolist()))
            users = asked.ties[known]
            items[known], values[known] = self.index.search(vectors, length, exclude=exclude, users=users)
        if not bool(known.all()):
            without = rows[~known]
            items[without], values[without] = self._scanned(asked, without, length, refused)
        return items, values

    def _scanned(
        self, asked: _Asked, rows: Tensor, length: int, refused: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same for some rows (b,), by the scores of all items."""
        scores = asked.score(rows)  # (b, n_items)
        if refused is not None:
            scores = scores.masked_fill(refused[rows], -torch.inf)
        return rank_topk(scores, length, users=asked.ties[rows])

    def _reranked(
        self, asked: _Asked, items: Tensor, values: Tensor, had: Tensor
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
        ranked, scores = ranked.to(self.device), scores.to(self.device, torch.float32)
        # Where anything is left, the last candidate is the n-th new one, whatever else may be listed.
        last = values.masked_fill(~(chosen & new), torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
        fresh = (ranked >= 0) & ~had.gather(1, ranked.clamp(min=0))  # (B, C)
        worst = scores.masked_fill(~fresh, torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
        down = (worst - last - 1).nan_to_num(posinf=0.0, neginf=0.0)  # (B, 1)
        return ranked, scores, chosen, down

    def _had(self, asked: _Asked) -> Tensor:
        had = torch.zeros(len(asked), self.n_items, dtype=torch.bool, device=self.device)  # (B, n_items)
        had[asked.had] = True
        return had

    def _length(self, k: int, open_again: Tensor) -> int:
        """How many to retrieve, so that the candidates are among them."""
        again = int(open_again.sum(dim=1).max()) if len(open_again) else 0
        return min(self.n_items, max(k, self.n_candidates + again))

    def _all_scores(self, asked: _Asked) -> Tensor:
        """Scores (B, n_items) of the order that the two stages make."""
        rows = torch.arange(len(asked), device=self.device)  # (B,)
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

    def _ranked(self, asked: _Asked, k: int, refused: Tensor | None, stages: Stages) -> tuple[Tensor, Tensor]:
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

    def _lists(
        self,
        asked: _Asked,
        k: int,
        refused: Tensor | None,
        rules: tuple[int | None, float],
        stages: Stages,
    ) -> tuple[Tensor, Tensor]:
        """Lists (B, k) by all stages, and scores."""
        at_most, diversity = rules
        stages.lists += len(asked)
        pool = k if not diversity else max(k, min(self.n_candidates, self.n_items))
        items, values = self._ranked(asked, pool, refused, stages)
        if diversity:
            with stages.timed("diversify"):
                items, values = self._diversified(items[:, :pool], values[:, :pool], diversity)
        if at_most is not None:
            with stages.timed("filter"):
                lists = self._of_groups(items, values, k, at_most)
            # Rows that came out short may be filled from further down.
            if lists is None and items.shape[1] < self.n_items:
                more = self._ranked(asked, self.n_items, refused, stages)
                items, values = _continued(items, values, *more) if diversity else more
            with stages.timed("filter"):
                lists = lists or self._of_groups(items, values, k, at_most, final=True)
            assert lists is not None
            items, values = lists
        return items[:, :k], values[:, :k]

    def _diversified(self, items: Tensor, values: Tensor, diversity: float) -> tuple[Tensor, Tensor]:
        """Each list (B, P) in the order of maximal marginal relevance."""
        vectors = self.retriever.encode_items() if isinstance(self.retriever, TwoSides) else None  # (n, d)
        order = torch.arange(items.shape[1], device=items.device).repeat(len(items), 1)  # (B, P)
        for row, mine in enumerate(items):
            n = int((mine >= 0).sum())
            if n < 2:
                continue
            score = values[row, :n]  # (n,)
            spread = (score.max() - score.min()).clamp(min=torch.finfo(score.dtype).tiny)  # ()
            relevance = (score - score.min()) / spread  # (n,)
            if vectors is not None:
                unit = functional.normalize(vectors[mine[:n]], dim=1)  # (n, d)
                similarity = unit @ unit.mT  # (n, n)
            else:
                similarity = _shared_groups([self._groups_of()[item] for item in mine[:n].tolist()]).to(
                    mine.device
                )
            order[row, :n] = maximal_marginal_relevance(relevance, similarity, n, diversity)
        return items.gather(1, order), values.gather(1, order)

    def _groups_of(self) -> list[frozenset[Any]]:
        if self._groups is None:
            raise ValueError(
                f"this needs to know the items' groups: give Pipeline items=, a frame with the column "
                f"{self.group!r}, or name another column with group="
            )
        return self._groups

    def _of_groups(
        self, items: Tensor, values: Tensor, k: int, at_most: int, *, final: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """Lists (B, k) in which no group has too many; None where one came out short, unless it is final."""
        groups = self._groups_of()
        found = torch.full((len(items), k), -1, device=items.device)  # (B, k)
        scores = torch.full((len(items), k), -torch.inf, device=items.device)  # (B, k)
        for row, mine in enumerate(items.tolist()):
            n = next((place for place, item in enumerate(mine) if item < 0), len(mine))
            kept = at_most_of_a_group(mine[:n], groups, at_most)[:k]
            if len(kept) < k and not final:
                return None
            place = torch.tensor(kept, dtype=torch.int64, device=items.device)  # (n,)
            found[row, : len(kept)], scores[row, : len(kept)] = items[row, place], values[row, place]
        return found, scores

    # ---------------------------------------------------------------------------------------- what is asked

    def _score(self, users: Tensor) -> Tensor:
        return self._all_scores(self._of_users(users))

    @torch.no_grad()
    @in_float32()
    def score_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None = None,
    ) -> Tensor:
        """Scores every item for people given by their histories, known to the parts or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.
            timestamps: B lists or tensors of seconds, for parts that read the time.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the pipeline's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, IndexError: histories that are no lists of known items.
            ValueError: a part reads no histories, or needs timestamps.
        """
        self._check_fitted()
        scores = self._all_scores(self._of_histories(histories, timestamps))  # (B, n_items)
        given = next((one.device for one in histories if isinstance(one, Tensor)), self.device)
        return scores.to(given, torch.float32)

    def _rules(self, at_most: int | None, diversity: float | None) -> tuple[int | None, float]:
        """The rules of a call, or the options."""
        most = self.at_most if at_most is None else whole_number(at_most, "at_most", at_least=1)
        unlike = self.diversity if diversity is None else _check_share(diversity, "diversity")
        if most is not None or (unlike and not isinstance(self.retriever, TwoSides)):
            self._groups_of()
        return most, unlike

    def _blocked(self, ids: Iterable[Any] | None) -> Tensor | None:
        """Ids that may not be listed, as indices; those that nobody knows are no fault."""
        if ids is None:
            return None
        known = ids_of(self.item_ids, "Pipeline")
        places = known.get_indexer(pd.Index(as_list(ids, "blocked"), tupleize_cols=False))
        return torch.tensor(places[places >= 0], dtype=torch.int64, device=self.device)  # (n,)

    @torch.no_grad()
    @in_float32()
    def recommend(
        self,
        users: Tensor,
        k: int = 10,
        exclude: Interactions | None = None,
        *,
        allowed: Iterable[Any] | None = None,
        blocked: Iterable[Any] | None = None,
        at_most: int | None = None,
        diversity: float | None = None,
        stages: Stages | None = None,
        progress: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` best items for each user by all stages, by index; ``recommend_frame`` speaks in ids.

        Args:
            users: (B,) integer indices.
            k: length of the list, at most ``n_items``.
            exclude: events whose items are left out of their user's list.
            allowed: ids of the items that may be in a list; None allows all.
            blocked: ids of items that may not; those that nobody knows are passed over.
            at_most: items of one group in a list; None takes the option.
            diversity: weight of being unlike the items above; None takes the option.
            stages: a report to which the time of each stage is added.
            progress: show a bar on long work.

        Returns:
            Items (B, k) int64 and their scores (B, k) float32, on the users' device; -1 and ``-inf`` where a
            user has fewer left.

        Raises:
            NotFittedError, TypeError, IndexError: as for any recommender.
            ValueError: likewise; or groups are asked for, and ``items`` says nothing of them.
        """
        users = self._check_users(users)
        k, rules = check_length(k, self.n_items), self._rules(at_most, diversity)
        if exclude is not None:
            check_interactions(exclude, "Pipeline.recommend(exclude=...)")
            sizes = (self.n_users, self.n_items)
            check_catalog(exclude, sizes, self.user_ids, self.item_ids, "Pipeline.recommend(exclude=...)")
        report = Stages() if stages is None else stages
        with report.timed("filter"):
            left_out, barred = left_out_of(self, exclude, allowed), self._blocked(blocked)
        batch = max(1, _SCORES_AT_ONCE // self.n_items)
        found = []
        for part in progress_bar(users.split(batch), "recommending", enabled=progress and len(users) > batch):
            asked = part.to(self.device)  # (b,)
            with report.timed("filter"):
                refused = self._refused(len(part), None if left_out is None else left_out(asked), barred)
            found.append(self._lists(self._of_users(asked), k, refused, rules, report))
        if not len(users):
            nothing = torch.zeros(0, k, device=users.device)
            return nothing.long(), nothing
        items, scores = (torch.cat(parts).to(users.device) for parts in zip(*found, strict=True))
        return items, scores

    def _refused(self, n: int, left_out: tuple[Tensor, ...] | None, barred: Tensor | None) -> Tensor | None:
        """What may not be in each of n lists, (n, n_items) bool, or None."""
        if left_out is None and barred is None:
            return None
        refused = torch.zeros(n, self.n_items, dtype=torch.bool, device=self.device)  # (n, n_items)
        if left_out is not None:
            refused[tuple(index.to(self.device) for index in left_out)] = True
        if barred is not None:
            refused[:, barred] = True
        return refused

    def recommend_frame(
        self,
        users: Iterable[Any] | Any,
        k: int = 10,
        *,
        items: pd.DataFrame | None = None,
        exclude: Interactions | None = None,
        allowed: Iterable[Any] | None = None,
        blocked: Iterable[Any] | None = None,
        at_most: int | None = None,
        diversity: float | None = None,
        stages: Stages | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """The ``k`` best items for each user, in the caller's own ids; see ``recommend``.

        Args:
            users: ids of users, or one id.
            k: length of each list.
            items: as for ``Recommender.recommend_frame``.
            exclude: as for ``recommend``.
            allowed: as for ``recommend``.
            blocked: as for ``recommend``.
            at_most: as for ``recommend``.
            diversity: as for ``recommend``.
            stages: as for ``recommend``.
            progress: show a bar on long work.

        Returns:
            A row a recommendation: ``user_id``, ``rank`` from 1, ``item_id``, ``score``, and the columns of
            ``items``.

        Raises:
            KeyError: a user that the pipeline does not know.
        """
        self._check_fitted()
        ids = as_list(users, "users")
        indices = positions(self.user_ids, ids, "user", "Pipeline")  # (B,)
        found, scores = self.recommend(
            indices,
            k,
            exclude,
            allowed=allowed,
            blocked=blocked,
            at_most=at_most,
            diversity=diversity,
            stages=stages,
            progress=progress,
        )
        return lists_frame(
            pd.Index(ids, name="user_id"), found, scores, ids_of(self.item_ids, "Pipeline"), items
        )

    @torch.no_grad()
    @in_float32()
    def recommend_histories(
        self,
        histories: Mapping[Any, Sequence[Any]] | Sequence[Sequence[Any]],
        k: int = 10,
        *,
        items: pd.DataFrame | None = None,
        allowed: Iterable[Any] | None = None,
        repeat: bool = False,
        timestamps: Sequence[Sequence[int]] | None = None,
        blocked: Iterable[Any] | None = None,
        at_most: int | None = None,
        diversity: float | None = None,
        stages: Stages | None = None,
    ) -> pd.DataFrame:
        """The ``k`` best items for people never seen, from what they did, in the caller's own ids.

        Args:
            histories: a name for each person and the ids of the person's items, oldest first; or a list of
                such lists, which are named 0, 1, ...
            k: length of each list.
            items: as for ``recommend_frame``.
            allowed: as for ``recommend``.
            repeat: whether an item of the history may be recommended again.
            timestamps: seconds of each event of each history, for parts that read the time.
            blocked: as for ``recommend``.
            at_most: as for ``recommend``.
            diversity: as for ``recommend``.
            stages: as for ``recommend``.

        Returns:
            As ``recommend_frame``, with the names in ``user_id``.

        Raises:
            KeyError: an item that the pipeline does not know.
            ValueError: a part reads no histories.
        """
        self._check_fitted()
        if isinstance(histories, str) or not isinstance(histories, Mapping | Sequence):
            raise TypeError(
                f"histories must map a name to a list of item ids, or be a list of such lists; "
                f"got {type(histories).__name__}"
            )
        named = dict(histories) if isinstance(histories, Mapping) else dict(enumerate(histories))
        read = [
            positions(self.item_ids, as_list(ids, "a history"), "item", "Pipeline") for ids in named.values()
        ]
        asked = self._of_histories(read, timestamps)
        rules = (allowed, blocked, at_most, diversity)
        return self._frame(list(named), asked, k, items, None if repeat else asked.had, rules, stages)

    @torch.no_grad()
    @in_float32()
    def recommend_texts(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        items: pd.DataFrame | None = None,
        allowed: Iterable[Any] | None = None,
        blocked: Iterable[Any] | None = None,
        at_most: int | None = None,
        diversity: float | None = None,
        stages: Stages | None = None,
    ) -> pd.DataFrame:
        """The ``k`` items most like each text, such as "a slow Japanese drama".

        Args:
            texts: of any length; each is read as an item's text is.
            k: length of each list.
            items: as for ``recommend_frame``.
            allowed: as for ``recommend``.
            blocked: as for ``recommend``.
            at_most: as for ``recommend``.
            diversity: as for ``recommend``.
            stages: as for ``recommend``.

        Returns:
            As ``recommend_frame``, with the column ``text`` in place of ``user_id``.

        Raises:
            TypeError: one text in place of many.
            ValueError: the retriever reads no text.
        """
        self._check_fitted()
        asked = self._of_texts(texts)
        rules = (allowed, blocked, at_most, diversity)
        return self._frame(list(texts), asked, k, items, None, rules, stages, owner="text")

    def _frame(
        self,
        names: list[Any],
        asked: _Asked,
        k: int,
        items: pd.DataFrame | None,
        left_out: tuple[Tensor, Tensor] | None,
        rules: tuple[Iterable[Any] | None, Iterable[Any] | None, int | None, float | None],
        stages: Stages | None,
        owner: str = "user_id",
    ) -> pd.DataFrame:
        """Lists of people or texts as rows."""
        allowed, blocked, at_most, diversity = rules
        k, chosen = check_length(k, self.n_items), self._rules(at_most, diversity)
        report = Stages() if stages is None else stages
        with report.timed("filter"):
            refused = self._refused(len(asked), left_out, self._blocked(blocked))
            only = left_out_of(self, None, allowed)
            if only is not None:
                mask = self._refused(len(asked), only(asked.ties), None)
                assert mask is not None
                refused = mask if refused is None else refused | mask
        found, scores = self._lists(asked, k, refused, chosen, report)
        return lists_frame(
            pd.Index(names, name=owner), found, scores, ids_of(self.item_ids, "Pipeline"), items
        )

    def _similarities(self, items: Tensor) -> Tensor:
        assert self.retriever is not None
        return self.retriever._similarities(items)

    # ------------------------------------------------------------------------------------------- on the disk

    def _state_to_save(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super()._state_to_save().items() if name in self._buffers}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Saves the pipeline with its parts, its index and its table of items in one folder.

        Everything is written beside the folder first. If that fails, what was there stays as it was; other
        files in the folder stay in any case.

        Args:
            save_directory: the folder; made if missing.
            **options: of the hub's ``save_pretrained``.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: a part that cannot be saved.
            OSError: what the file system refused.
        """
        self._check_fitted()
        target = Path(save_directory).expanduser().resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            whole = Path(folder) / target.name
            answer = super().save_pretrained(whole, **options)
            _move_into(whole, target)
        return answer

    def _save_pretrained(self, save_directory: Path) -> None:
        for name in _PARTS:
            part = getattr(self, name)
            if part is None:
                continue
            if not isinstance(part, Recommender):
                raise TypeError(
                    f"the {name}, {type(part).__name__}, is no Recommender and cannot be saved with the "
                    f"pipeline"
                )
            part.save_pretrained(save_directory / name)
        if self.index is not None:
            self.index.save(save_directory / _INDEX_FILE)
        if self._table is not None:
            with write_whole(save_directory / _ITEMS_FILE) as path:
                self._table.to_parquet(path)
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"a Pipeline is loaded from a folder; fetch {model_id} first, with "
                f"huggingface_hub.snapshot_download"
            )
        model = super()._from_pretrained(model_id=model_id, config=config, **options)
        place = options.get("map_location", "cpu")
        for name in _PARTS:
            if (folder / name).is_dir():
                part = load(folder / name, map_location=place)
                sizes = (part._n_users, part._n_items)
                if sizes != (model._n_users, model._n_items):
                    raise ValueError(f"{folder / name} holds a model of another pipeline, of {sizes}")
                setattr(model, name, part)
        if model.retriever is None:
            raise FileNotFoundError(f"{folder} has no folder retriever: it is damaged; save it again")
        if (folder / _INDEX_FILE).is_file():
            model.index = _load_index(folder / _INDEX_FILE)
            if len(model.index) != model.n_items:
                raise ValueError(f"{folder / _INDEX_FILE} belongs to another pipeline")
        if (folder / _ITEMS_FILE).is_file():
            model.items = pd.read_parquet(folder / _ITEMS_FILE)
        model._check_parts()
        model._read_items()
        return model.eval()


def _reads_histories(part: Any) -> bool:
    """Whether a part serves people whom it knows by their history alone."""
    can = hasattr(part, "score_histories") or hasattr(part, "rank_histories")
    return can and bool(getattr(part, "reads_histories", True))


def _picked(scores: Tensor, candidates: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates (B, C) by their scores among those of all items (B, n_items)."""
    mine = scores.gather(1, candidates.clamp(min=0).to(scores.device))  # (B, C)
    return rank_candidates(mine, candidates.to(scores.device), users=users)


def _continued(items: Tensor, values: Tensor, more: Tensor, more_values: Tensor) -> tuple[Tensor, Tensor]:
    """Lists (B, P) followed by what longer ones (B, L) have beside."""
    there = (more[:, :, None] == items[:, None, :]).any(dim=2)  # (B, L)
    order = (there | (more < 0)).to(torch.int8).argsort(dim=1, stable=True)  # (B, L) what is new comes first
    rest = more.masked_fill(there, -1).gather(1, order)  # (B, L)
    score = more_values.masked_fill(there, -torch.inf).gather(1, order)  # (B, L)
    return torch.cat([items, rest], dim=1), torch.cat([values, score], dim=1)


def _as_groups(value: Any) -> frozenset[Any]:
    """An item's groups: a list of them, or a text with "|" between."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return frozenset()
    if isinstance(value, str):
        return frozenset(name for name in value.split("|") if name)
    return frozenset(value) if isinstance(value, Iterable) else frozenset([value])


def _shared_groups(groups: Sequence[frozenset[Any]]) -> Tensor:
    """The share of groups that two items have in common (Jaccard), (n, n); an item without any is alone."""
    names = {name: i for i, name in enumerate(sorted(frozenset().union(*groups), key=str))}
    has = torch.zeros(len(groups), max(1, len(names)), device="cpu")  # (n, g)
    for row, mine in enumerate(groups):
        has[row, [names[name] for name in mine]] = 1.0
    common, count = has @ has.mT, has.sum(dim=1)  # (n, n), (n,)
    return common / (count[:, None] + count - common).clamp(min=1)


def _check_share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
    return float(value)


def _load_index(path: Path) -> Index:
    """An index of the library by what its file says it is."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            kind = json.loads((file.metadata() or {}).get("index", "{}")).get("class")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the pipeline again") from error
    known: dict[Any, Any] = {"ExactIndex": ExactIndex, "FaissIndex": FaissIndex}
    if kind not in known:
        raise ValueError(f"{path} holds no index of this library")
    index: Index = known[kind].load(path)
    return index


def _move_into(whole: Path, target: Path) -> None:
    """Puts a complete folder in place; the configuration, without which nothing is loaded, comes last."""
    if not target.exists():
        whole.replace(target)
        return
    (target / CONFIG_FILE).unlink(missing_ok=True)
    for name in (*_PARTS, _INDEX_FILE, _ITEMS_FILE):
        old = target / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for path in sorted(whole.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.replace(target / path.name)
