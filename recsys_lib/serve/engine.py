"""From a request to an answer: the pipeline, and what has happened since it was fitted."""

import contextlib
import json
import math
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recsys_lib.models.core.saving import CONFIG_FILE
from recsys_lib.pipeline import Pipeline, Stages, at_most_of_a_group
from recsys_lib.retrieval import FaissIndex
from recsys_lib.serve.schema import (
    MOST_HISTORY,
    Answer,
    FieldProblem,
    ForHistory,
    ForText,
    ForUser,
    Found,
    Listed,
    ListedItem,
    NewEvent,
    Problem,
    Similar,
)
from recsys_lib.serve.store import Event, EventStore

__all__ = ["Engine", "Refused", "Served", "signature"]

_SHOWN = ("title", "year", "genres")  # columns of the pipeline's table that go out with an item


class Refused(Exception):  # noqa: N818
    """A request that cannot be answered, in words for the caller.

    Args:
        status: of HTTP.
        code: of the error, for programs.
        message: for people.
        field: which field of the request is meant.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(code)
        self.status = status
        fields = [] if field is None else [FieldProblem(field=field, message=message)]
        self.problem = Problem(code=code, message=message, fields=fields)


def signature(folder: Path) -> tuple[int, int, int]:
    """What changes when a pipeline is saved anew: its configuration is written last.

    Raises:
        OSError: there is none.
    """
    found = (folder / CONFIG_FILE).stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


class Served:
    """A pipeline as it is served. It is not changed: another one takes its place.

    Args:
        pipeline: what answers.
        version: a name that changes with the model.
        mark: see ``signature``.

    Raises:
        ValueError: its ids are neither whole numbers nor texts, or it has none.
    """

    def __init__(self, pipeline: Pipeline, version: str, mark: tuple[int, int, int]) -> None:
        self.pipeline, self.version, self.mark = pipeline, version, mark
        for role, ids in (("user", pipeline.user_ids), ("item", pipeline.item_ids)):
            kind = "none" if ids is None else pd.api.types.infer_dtype(ids, skipna=False)
            if kind not in ("integer", "string"):
                raise ValueError(
                    f"a service is asked by ids that are whole numbers or texts; {role}s: {kind}"
                )
        # Dictionaries, since an index of pandas is slow for one id at a time; in them 7 is not "7".
        self._users, self._items = (
            {_json_id(given): place for place, given in enumerate(ids)}
            for ids in (pipeline.user_ids, pipeline.item_ids)
            if ids is not None
        )
        # A search of FAISS is widened by changing the index, which only one may do at a time.
        self.turn: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if isinstance(pipeline.index, FaissIndex) else contextlib.nullcontext()
        )
        table = pipeline.catalog
        shown = [name for name in _SHOWN if name in table.columns]
        columns = [[_plain(value) for value in table[name]] for name in shown]
        self.about = [dict(zip(shown, row, strict=True)) for row in zip(*columns, strict=True)]
        self.about = self.about or [{} for _ in range(len(table))]
        self.titles = [str(about.get("title") or "").casefold() for about in self.about]
        self.counts = torch.bincount(pipeline.history_items.cpu(), minlength=pipeline.n_items)  # (n_items,)
        self.popular = self.counts.argsort(descending=True, stable=True).tolist()

    @classmethod
    def load(cls, folder: Path) -> "Served":
        """Reads a folder that ``Pipeline.save_pretrained`` wrote.

        Raises:
            FileNotFoundError, ValueError: as ``Pipeline.from_pretrained``; or it was saved anew meanwhile.
        """
        mark = signature(folder)
        pipeline = Pipeline.from_pretrained(folder)
        if signature(folder) != mark:
            raise ValueError(f"{folder} was saved anew while it was read")
        text = (folder / CONFIG_FILE).read_bytes() + repr(mark).encode()
        return cls(pipeline, sha256(text).hexdigest()[:12], mark)

    @property
    def reads_text(self) -> bool:
        """Whether it answers to a description."""
        return self.pipeline.reads_texts

    def user(self, given: int | str) -> int | None:
        """The index of a user, or None."""
        return self._users.get(given)

    def item(self, given: int | str) -> int | None:
        """The index of an item, or None."""
        return self._items.get(given)

    def item_at(self, index: int) -> int | str:
        """The caller's id of an item."""
        assert self.pipeline.item_ids is not None
        return _json_id(self.pipeline.item_ids[index])

    def listed(self, ids: list[Any], scores: list[float]) -> list[Listed]:
        """A list as it goes out."""
        found = []
        for rank, (given, score) in enumerate(zip(ids, scores, strict=True), start=1):
            place = self.item(given)
            assert place is not None
            found.append(Listed(rank=rank, item=_json_id(given), score=float(score), about=self.about[place]))
        return found

    def search(self, words: str, k: int) -> Found:
        """Items whose titles hold the words, the popular ones first."""
        asked = words.casefold()
        hits = [place for place in self.popular if asked in self.titles[place]][:k]
        return Found(items=[ListedItem(item=self.item_at(i), about=self.about[i]) for i in hits])


class Engine:
    """Answers requests with the pipeline of the moment; may be asked from several threads.

    Args:
        folder: of the saved pipeline.
        store: where new events are kept.
    """

    def __init__(self, folder: Path, store: EventStore) -> None:
        self.folder, self.store = folder, store
        self.served = Served.load(folder)
        self.reload_failed = ""
        self._reloading = threading.Lock()

    def reload(self) -> bool:
        """Takes up a pipeline that was saved anew; what is being answered keeps the one it has.

        Returns:
            Whether another one is served now. One that cannot be read is left, and ``reload_failed`` says
            what kind of error that was.
        """
        with self._reloading:
            try:
                if signature(self.folder) == self.served.mark:
                    self.reload_failed = ""
                    return False
                served = Served.load(self.folder)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the former one serves
                self.reload_failed = type(error).__name__
                return False
            self.served, self.reload_failed = served, ""
            return True

    # Requests.

    def keep(self, events: list[NewEvent], now: int) -> int:
        """Keeps events, so that the next answer has read them; returns how many were new.

        Raises:
            Refused: an item that the model does not know.
            sqlite3.Error: they could not be written.
        """
        served = self.served
        for place, event in enumerate(events):
            if served.item(event.item) is None:
                raise _unknown("item", f"events.{place}.item")
        return self.store.add(
            [Event(e.user, e.item, now if e.timestamp is None else e.timestamp, e.key) for e in events]
        )

    def recommend(self, request: ForUser | ForHistory | ForText) -> tuple[Answer, Stages]:
        """A list for someone.

        Raises:
            Refused: it is for nobody that is known, or asks for what the pipeline cannot do.
        """
        served = self.served  # the one that answers, even if another takes its place meanwhile
        with served.turn:
            return self._recommend(served, request)

    def _recommend(self, served: Served, request: ForUser | ForHistory | ForText) -> tuple[Answer, Stages]:
        pipeline, stages, new_events, basis = served.pipeline, Stages(), 0, "text"
        if request.at_most is not None and pipeline._groups is None:
            raise Refused(409, "no_groups", "the items of this model have no groups", "at_most")
        k = min(request.k, pipeline.n_items)
        blocked: list[Any] = list(request.exclude)
        rules: dict[str, Any] = {
            "blocked": blocked,
            "at_most": request.at_most,
            "diversity": request.diversity,
            "stages": stages,
        }
        if request.allowed is not None:
            rules["allowed"] = [given for given in request.allowed if served.item(given) is not None]
        if request.diversity and pipeline._groups is None and not hasattr(pipeline.retriever, "encode_items"):
            raise Refused(409, "no_likeness", "this model cannot tell how alike items are", "diversity")
        if isinstance(request, ForText):
            if not served.reads_text:
                raise Refused(409, "reads_no_text", "this model reads no text", "text")
            if rules.get("allowed") == []:
                return _answer(served, basis, 0, [], stages), stages
            frame = pipeline.recommend_texts([request.text], k, **rules)
            return _answer(served, basis, 0, served.listed(*_columns(frame)), stages), stages
        if isinstance(request, ForHistory):
            basis = "history"
            for place, given in enumerate(request.history):
                if served.item(given) is None:
                    raise _unknown("item", f"history.{place}")
            ids = list(request.history)
            times = [
                int(time.time()) - len(ids) + i for i in range(len(ids))
            ]  # as if one a second, until now
        else:
            basis = "user"
            ids, times, new_events = self._history(served, request.user)
        if rules.get("allowed") == []:  # nothing that the model knows may be listed
            return _answer(served, basis, new_events, [], stages), stages
        if not ids:
            with stages.timed("retrieve"):
                found = _popular(served, request, k)
            return _answer(served, "popular", new_events, found, stages), stages
        if pipeline.reads_histories:
            frame = pipeline.recommend_histories([ids], k, repeat=request.repeat, timestamps=[times], **rules)
        else:
            index = served.user(request.user) if isinstance(request, ForUser) else None
            if index is None:
                field = "user" if isinstance(request, ForUser) else "history"
                raise Refused(409, "reads_no_history", "this model knows people of its fit alone", field)
            assert pipeline.user_ids is not None
            if not request.repeat:
                blocked += ids
            frame = pipeline.recommend_frame([pipeline.user_ids[index]], k, progress=False, **rules)
        return _answer(served, basis, new_events, served.listed(*_columns(frame)), stages), stages

    def _history(self, served: Served, user: int | str) -> tuple[list[Any], list[int], int]:
        """What a user has had, oldest first, when, and how much of it came after the fit.

        Raises:
            Refused: nobody knows the user.
        """
        pipeline, index = served.pipeline, served.user(user)
        old: list[tuple[int, Any]] = []
        if index is not None:
            own = slice(*pipeline.history_crow[index : index + 2].tolist())
            old = [
                (when, served.item_at(item))
                for item, when in zip(
                    pipeline.history_items[own].tolist(), pipeline.history_times[own].tolist(), strict=True
                )
            ]
        there = set(old)  # a model that was fitted on the events has read them already
        new = [
            (event.time, event.item)
            for event in self.store.of(user, MOST_HISTORY)
            if (event.time, event.item) not in there and served.item(event.item) is not None
        ]
        if index is None and not new:
            raise _unknown("user", "user")
        both = sorted(old + new, key=lambda pair: pair[0])[-MOST_HISTORY:]  # stable: later rows stay later
        return [item for _, item in both], [when for when, _ in both], len(new)

    def similar(self, given: str, k: int) -> Similar:
        """The items most like one.

        Raises:
            Refused: an unknown item, or a model without such a notion.
        """
        served = self.served
        place = served.item(given)
        if place is None and given.removeprefix("-").isascii() and given.removeprefix("-").isdigit():
            place = served.item(int(given)) if len(given) < 20 else None  # an address has no numbers
        if place is None:
            raise _unknown("item", "item")
        try:
            frame = served.pipeline.similar_items([served.item_at(place)], min(k, served.pipeline.n_items))
        except TypeError as error:
            raise Refused(409, "no_similar_items", "this model compares no items") from error
        found = served.listed(frame["similar_id"].tolist(), frame["score"].tolist())
        return Similar(model=served.version, items=found)


def _unknown(role: str, field: str) -> Refused:
    return Refused(404, f"unknown_{role}", f"this {role} is not known", field)


def _columns(frame: pd.DataFrame) -> tuple[list[Any], list[float]]:
    return frame["item_id"].tolist(), frame["score"].tolist()


def _answer(served: Served, basis: str, new_events: int, items: list[Listed], stages: Stages) -> Answer:
    spent = {name: round(1000 * seconds, 3) for name, seconds in stages.seconds().items()}
    return Answer(model=served.version, basis=basis, new_events=new_events, items=items, milliseconds=spent)


def _popular(served: Served, request: ForUser | ForHistory, k: int) -> list[Listed]:
    """What most events are of, by the rules of the request; there is nothing to be diverse about."""
    barred = {served.item(given) for given in request.exclude}
    allowed = None if request.allowed is None else {served.item(given) for given in request.allowed}
    left = [i for i in served.popular if i not in barred and (allowed is None or i in allowed)]
    at_most = served.pipeline.at_most if request.at_most is None else request.at_most
    if at_most is not None:
        left = [left[place] for place in at_most_of_a_group(left, served.pipeline._groups_of(), at_most)]
    best = left[:k]
    return served.listed([served.item_at(i) for i in best], served.counts[best].tolist())


def _json_id(given: Any) -> int | str:
    """An id as JSON has it."""
    return int(given) if isinstance(given, int | np.integer) else str(given)


def _plain(value: Any) -> Any:
    """A cell of the table as JSON has it; a missing one is null."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, int | float | str | bool) else json.loads(json.dumps(str(value)))
