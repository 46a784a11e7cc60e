"""What every runner shares: it reads a job, keeps the clock, and writes what came out.

A runner is a script of one library, started as ``python runners/NAME.py JOB.json`` by the harness, in the
library's own environment. It imports numpy, the library, and this file; nothing of the book. Data come in
as ``.npz`` and go out as ``.npy`` and JSON, never pickled.

A job is an object::

    {"task": "fit" | "serve" | "predict" | another that the runner has,
     "model": "EASE", "events": "train.npz", "out": "folder",
     "fits": [{"options": {...}, "seed": 0, "epochs": 100, "every": 10}]}

``fit`` writes ``scores_F_L.npy``, (n_users, n_items) float32, for fit F and look L: models that train in
epochs are looked at after every so many of them, with the clock stopped. ``serve`` writes ``lists_F.npy``,
(n_users, k), the best items that a user does not have, and how long fitting and listing took. ``predict``
writes ``predictions_F.npy``, a rating for each pair of a second file. ``result.json`` comes last: it says
that all of it is there.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Scores = Callable[[np.ndarray], np.ndarray]

# Cells of a block of scores: 32 MB.
_CELLS = 2**23


class Events:
    """The events of a job: parallel arrays of equal length, with contiguous ids."""

    def __init__(self, file: str) -> None:
        with np.load(file, allow_pickle=False) as arrays:
            self.users = arrays["users"]  # (E,) int64
            self.items = arrays["items"]  # (E,) int64
            self.ratings = arrays["ratings"]  # (E,) float32
            self.timestamps = arrays["timestamps"]  # (E,) int64
            self.n_users, self.n_items = int(arrays["n_users"]), int(arrays["n_items"])

    def csr(self, binary: bool = True) -> Any:
        """(n_users, n_items) scipy matrix of ones, or of the ratings."""
        from scipy.sparse import csr_matrix

        values = np.ones(len(self.users), np.float32) if binary else self.ratings
        return csr_matrix((values, (self.users, self.items)), shape=(self.n_users, self.n_items))


class Clock:
    """Seconds on the clock and of processor time, all threads, without those while it is stopped."""

    def __init__(self) -> None:
        self.paused, self.still = np.zeros(2), False
        self.start = self._now()

    @staticmethod
    def _now() -> np.ndarray:
        # Compilers that a library starts are processes of their own, and count.
        others = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.array([time.perf_counter(), time.process_time() + others.ru_utime + others.ru_stime])

    def read(self) -> dict[str, float]:
        """What has passed since the start."""
        wall, cpu = self._now() - self.start - self.paused
        return {"wall_s": float(wall), "cpu_s": float(cpu)}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time in here does not count."""
        if self.still:  # within another stop, which counts
            yield
            return
        self.still, before = True, self._now()
        try:
            yield
        finally:
            self.still = False
            self.paused += self._now() - before


class Looks:
    """Looks at a model in training, with the clock stopped.

    Args:
        events: the training events.
        stem: where scores are written, the start of their files' names; None writes none.
    """

    def __init__(self, events: Events, stem: Path | None) -> None:
        self.events, self.stem, self.rows, self.clock = events, stem, [], Clock()

    def __call__(self, epoch: int, scores: Scores, spent: dict[str, float] | None = None) -> None:
        """Looks at it now; ``spent`` is what it took so far, by default what this clock says."""
        self.rows.append({"epochs": epoch, **(spent or self.clock.read())})
        if self.stem is not None:
            with self.clock.stopped():
                file = self.stem.with_name(f"{self.stem.name}_{len(self.rows) - 1}.npy")
                np.save(file, all_scores(self.events, scores))

    def again(self, epoch: int, train: Callable[[], Scores]) -> None:
        """A training from the start, for a library that cannot be looked at on the way."""
        with self.clock.stopped():
            own = Clock()
            scores = train()
            self(epoch, scores, own.read())


class Fitted:
    """What a fit gives.

    Args:
        scores: (B,) users to (B, n_items) scores of the whole catalog.
        lists: k to (n_users, k) items, by the library's own function for all users at once; None where it has
            none that takes many users, then the scores are sorted by numpy.
        predict: (N,) users and (N,) items to (N,) ratings.
    """

    def __init__(
        self,
        scores: Scores | None = None,
        lists: Callable[[int], np.ndarray] | None = None,
        predict: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.scores, self.lists, self.predict = scores, lists, predict


def all_scores(events: Events, scores: Scores) -> np.ndarray:
    """(n_users, n_items) float32, made in blocks of users."""
    found = np.empty((events.n_users, events.n_items), np.float32)
    for users in blocks(events):
        found[users] = scores(users)
    return found


def blocks(events: Events) -> list[np.ndarray]:
    """All users, in blocks whose scores fit the cache of a sort."""
    size = max(1, _CELLS // events.n_items)
    return [np.arange(start, min(start + size, events.n_users)) for start in range(0, events.n_users, size)]


def best(events: Events, scores: Scores, k: int) -> np.ndarray:
    """(n_users, k) the best items that a user does not have, by numpy."""
    seen = events.csr()
    found = np.empty((events.n_users, k), np.int64)
    for users in blocks(events):
        block = np.array(scores(users), np.float32)  # (B, n_items), a copy
        rows = np.repeat(np.arange(len(users)), np.diff(seen.indptr)[users])
        block[rows, seen[users].indices] = -np.inf
        top = np.argpartition(-block, k - 1, axis=1)[:, :k]  # (B, k)
        order = np.argsort(-np.take_along_axis(block, top, 1), axis=1)
        found[users] = np.take_along_axis(top, order, 1)
    return found


_before = 0.0


def peak_mb() -> float:
    """The most that this process has held since `forget_peak`, or ever."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not the peak of getrusage: Linux starts that of a process at what its parent held.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def forget_peak() -> None:
    """Counts the peak from now on, where the system can."""
    global _before
    _before = max(_before, peak_mb())
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


Model = Callable[..., Fitted]


def run(
    models: dict[str, Model],
    prepare: Callable[[Events], Any],
    packages: Sequence[str],
    tasks: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] | None = None,
) -> None:
    """Does the job that the command line names.

    Args:
        models: for each name a function of the prepared data, the seed, ``look``, ``epochs``, ``every`` and
            the options, that fits one. It calls ``look(epoch, scores)`` where it is to be looked at.
        prepare: makes the library's own data set of the events; timed apart.
        packages: whose versions are reported.
        tasks: what the runner can do besides; from a job and the folder to what ``result.json`` holds.
    """
    loaded = time.process_time()
    job = json.loads(Path(sys.argv[1]).read_text("utf8"))
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    if job["task"] in (tasks or {}):
        result = tasks[job["task"]](job, out)
    else:
        result = _fits(job, out, models, prepare)
    result["versions"] = {name: importlib.metadata.version(name) for name in packages}
    result["load_s"] = loaded  # of the process until then: Python, and the library with all that it imports
    result["peak_mb"] = max(_before, peak_mb())
    part = out / "result.part"
    part.write_text(json.dumps(result), "utf8")
    part.rename(out / "result.json")


def _fits(
    job: dict[str, Any], out: Path, models: dict[str, Model], prepare: Callable[[Events], Any]
) -> dict[str, Any]:
    events = Events(job["events"])
    clock = Clock()
    prepared = prepare(events)
    spent = clock.read()
    forget_peak()
    found: dict[str, Any] = {"prepare": spent, "loaded_mb": peak_mb(), "fits": []}
    for number, fit in enumerate(job["fits"]):
        keep = job["task"] == "fit" and job.get("keep_scores", True)
        look = Looks(events, out / f"scores_{number}" if keep else None)
        made = models[job["model"]](
            prepared,
            seed=fit.get("seed", 0),
            look=look,
            epochs=fit.get("epochs", 1),
            every=fit.get("every", 0),
            **fit["options"],
        )
        row: dict[str, Any] = {"fit": look.clock.read(), "peak_mb": peak_mb()}
        if job["task"] == "fit":
            if not look.rows:
                with look.clock.stopped():
                    look(fit.get("epochs", 1), made.scores, row["fit"])
            row["looks"] = look.rows
        elif job["task"] == "serve":
            clock = Clock()
            items = made.lists(job["k"]) if made.lists else best(events, made.scores, job["k"])
            row["lists"] = clock.read()
            row["own_lists"] = made.lists is not None
            row["peak_mb"] = peak_mb()
            np.save(out / f"lists_{number}.npy", np.asarray(items, np.int64))
        elif job["task"] == "predict":
            pairs = Events(job["pairs"])
            clock = Clock()
            np.save(out / f"predictions_{number}.npy", made.predict(pairs.users, pairs.items))
            row["predict"] = clock.read()
        found["fits"].append(row)
    return found


def one_thread() -> None:
    """Keeps libraries that look at the machine, and not at the environment, to one thread."""
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "LK", "VECLIB_MAXIMUM"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
