"""The pipeline as a recommender: its parts, and what it is asked."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, take_rows
from recsys_lib.devices import in_float32
from recsys_lib.models.core.checks import check_catalog, check_histories, check_interactions, check_length
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.frames import as_list, ids_of, left_out_of, lists_frame, positions
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.parts import MadeOfParts
from recsys_lib.models.core.two_sides import TwoSides
from recsys_lib.pipeline.asked import (
    Asked,
    ask_for_histories,
    ask_for_texts,
    ask_for_users,
    reads_texts,
)
from recsys_lib.pipeline.candidates import TwoStages, continued
from recsys_lib.pipeline.diversity import diversified, share
from recsys_lib.pipeline.folder import INDEX_FILE, ITEMS_FILE, load_own, save_own
from recsys_lib.pipeline.groups import as_groups, lists_with_at_most, shared_groups
from recsys_lib.pipeline.latency import Stages
from recsys_lib.progress import progress_bar
from recsys_lib.retrieval import Index
from recsys_lib.similarity import cosine

__all__ = ["Pipeline"]

_SCORES_AT_ONCE = 2**22  # of the whole catalog, held while lists are made


class Pipeline(MadeOfParts):
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
    where a part reads texts. A retriever that does (``TwoTower(item_tower="text")``) takes it for the text of
    an item, and finds what is like it; a re-ranker that does (``CrossEncoder``) reads it in place of a
    history, and one that does not is passed over. Where only the re-ranker reads texts, nothing finds
    candidates, and it reads the whole catalog: right for a small one, slow for a large one.

    **Parts.** Any recommender retrieves. Where it has vectors (``TwoTower``), an ``index`` can search them;
    its lists are those of ``score`` as far as it is exact. Where filters leave less than half of the catalog,
    and for those who have no vector, everything is scored instead. Anything with ``rank(users, candidates)``
    or ``score(users)`` re-ranks; people with a history need ``rank_histories(histories, candidates)`` or
    ``score_histories(histories)``, and a text ``rank_texts(texts, candidates)`` or, without a retriever that
    reads texts, ``score_texts(texts)``. ``fit`` fits both parts, the re-ranker after the retriever;
    ``assemble`` takes parts that are fitted.

    **Saved** as one folder, with the parts in folders of their own, each of which ``recsys_lib.load`` loads.
    """

    part_fields: ClassVar[tuple[str, ...]] = ("retriever", "reranker")
    part_folders: ClassVar[tuple[str, ...]] = part_fields
    other_files: ClassVar[tuple[str, ...]] = (INDEX_FILE, ITEMS_FILE)

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
    def reads_texts(self) -> bool:
        """Whether it answers for a text: whether a part reads texts."""
        return reads_texts(self.retriever, self.reranker)

    def parts(self) -> dict[str, Any]:
        """The retriever, and the re-ranker where there is one."""
        stages = {name: getattr(self, name) for name in self.part_fields}
        return {name: part for name, part in stages.items() if part is not None}

    @classmethod
    def parts_from(cls, loaded: dict[str, Recommender]) -> dict[str, Any]:
        """The stages by their names."""
        if "retriever" not in loaded:
            raise LookupError("retriever")
        return loaded

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
        self._fit_parts(interactions, validation, progress, time.perf_counter())
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
        for part in self.parts().values():
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
            self._groups = [as_groups(value) for value in by_id[self.group]]
        self._table = by_id.rename_axis("item_id").reset_index()

    def _keep_histories(self, interactions: Interactions) -> None:
        self._update_parts(interactions)
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items)
        self._keep("history_times", interactions.timestamps)

    # ------------------------------------------------------------------------------------------ who is asked

    def _of_users(self, users: Tensor) -> Asked:
        """Users (B,) of the fit, on the pipeline's device."""
        assert self.retriever is not None
        place, row = take_rows(self.history_crow, users)  # (E,), (E,)
        return ask_for_users(self.retriever, self.reranker, users, (row, self.history_items[place]))

    def _of_histories(
        self, histories: Sequence[Tensor | Sequence[int]], timestamps: Sequence[Any] | None
    ) -> Asked:
        """People by their histories of item indices."""
        if not self.reads_histories:
            raise ValueError(self._no_histories())
        assert self.retriever is not None
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        if timestamps is not None and [len(t) for t in timestamps] != lengths.tolist():
            raise ValueError("timestamps must have one entry for each item of each history")
        read = list(items.to(self.device).split(lengths.tolist()))
        return ask_for_histories(self.retriever, self.reranker, read, timestamps)

    def _of_texts(self, texts: Sequence[str]) -> Asked:
        """What is like a text."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a list of texts; write [text]")
        assert self.retriever is not None
        return ask_for_texts(self.retriever, self.reranker, texts)

    # -------------------------------------------------------------------------------------------- the stages

    @property
    def _two_stages(self) -> TwoStages:
        return TwoStages(self.index, self.n_items, self.n_candidates)

    def _lists(
        self,
        asked: Asked,
        k: int,
        refused: Tensor | None,
        rules: tuple[int | None, float],
        stages: Stages,
    ) -> tuple[Tensor, Tensor]:
        """Lists (B, k) by all stages, and scores."""
        at_most, diversity = rules
        stages.lists += len(asked)
        pool = k if not diversity else max(k, min(self.n_candidates, self.n_items))
        items, values = self._two_stages.ranked(asked, pool, refused, stages)
        if diversity:
            with stages.timed("diversify"):
                alike = self._likeness()
                items, values = diversified(items[:, :pool], values[:, :pool], diversity, alike)
        if at_most is None:
            return items[:, :k], values[:, :k]
        groups = self._groups_of()
        with stages.timed("filter"):
            found, scores, filled = lists_with_at_most(items, values, k, groups, at_most)
        # Rows that came out short may be filled from further down.
        if not filled and items.shape[1] < self.n_items:
            more = self._two_stages.ranked(asked, self.n_items, refused, stages)
            items, values = continued(items, values, *more) if diversity else more
            with stages.timed("filter"):
                found, scores, _ = lists_with_at_most(items, values, k, groups, at_most)
        return found, scores

    def _likeness(self) -> Callable[[Tensor], Tensor]:
        """How alike items are to a diverse list: (n,) to (n, n)."""
        if isinstance(self.retriever, TwoSides):
            vectors = self.retriever.encode_items()  # (n_items, d)
            return lambda items: cosine(vectors[items], vectors[items])
        groups = self._groups_of()
        return lambda items: shared_groups([groups[item] for item in items.tolist()]).to(items.device)

    def _groups_of(self) -> list[frozenset[Any]]:
        if self._groups is None:
            raise ValueError(
                f"this needs to know the items' groups: give Pipeline items=, a frame with the column "
                f"{self.group!r}, or name another column with group="
            )
        return self._groups

    # ---------------------------------------------------------------------------------------- what is asked

    def _score(self, users: Tensor) -> Tensor:
        return self._two_stages.scores(self._of_users(users))

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
        scores = self._two_stages.scores(self._of_histories(histories, timestamps))  # (B, n_items)
        given = next((one.device for one in histories if isinstance(one, Tensor)), self.device)
        return scores.to(given, torch.float32)

    def _rules(self, at_most: int | None, diversity: float | None) -> tuple[int | None, float]:
        """The rules of a call, or the options."""
        most = self.at_most if at_most is None else whole_number(at_most, "at_most", at_least=1)
        unlike = self.diversity if diversity is None else share(diversity, "diversity")
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
        """The ``k`` best items for each text, such as "a slow Japanese drama".

        Args:
            texts: of any length; a retriever reads each as an item's text, a re-ranker as a history.
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
            ValueError: no part reads texts.
        """
        self._check_fitted()
        asked = self._of_texts(texts)
        rules = (allowed, blocked, at_most, diversity)
        return self._frame(list(texts), asked, k, items, None, rules, stages, owner="text")

    def _frame(
        self,
        names: list[Any],
        asked: Asked,
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

    def _save_pretrained(self, save_directory: Path) -> None:
        save_own(save_directory, self.index, self._table)
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any) -> Self:
        model = super()._from_pretrained(model_id=model_id, config=config, **options)
        model.index, model.items = load_own(Path(model_id), model.n_items)
        model._check_parts()
        model._read_items()
        return model.eval()
