"""Runs the plan: one process a cell, its result kept as soon as it is there, so that a killed run goes on.

A *cell* is one process of one library. What it is asked for is its job; a cell that was finished with the
same job is not run again. A cell that fails, takes longer than its limit, or gives what has the wrong
shape, is kept as failed, with the reason; everything else goes on.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import Environment
from benchmarks.peers.plan import Library, Plan
from recsys_lib.chapter.runs import code_hash
from recsys_lib.data import Interactions
from recsys_lib.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "LK", "VECLIB_MAXIMUM")


class CellError(Exception):
    """A cell gave no result; the message says why."""


@dataclass
class Bench:
    """The state of a run.

    Args:
        plan: what is measured.
        folder: where the state and the files between are kept.
        environments: by name, as they were made.
        only: parts of the names of the cells to run; the others are taken as they are. Empty for all.
        skip: parts of the names of cells that are not run.
        retry: run failed cells again.
    """

    plan: Plan
    folder: Path
    environments: Mapping[str, Environment] = field(default_factory=dict)
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    retry: bool = False
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    _hashes: dict[Path, str | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Reads the state, where there is one.

        Raises:
            BlockingIOError: another run is in this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this is gone, however it ends
        if self.state.is_file():
            self.cells = json.loads(self.state.read_text("utf8"))["cells"]

    def close(self) -> None:
        """Lets others use the folder."""
        self._lock.close()

    @property
    def state(self) -> Path:
        """The file of finished cells."""
        return self.folder / "state.json"

    def python(self, library: Library) -> Path | None:
        """The interpreter that a library lives in; None where it could not be installed."""
        if library.environment is None:
            return Path(sys.executable)
        made = self.environments.get(library.environment)
        return made.python if made else None

    def code(self, library: Library) -> list[str | None]:
        """Hashes of the code behind a library's cells: its runner; of the book's own, the library as well."""
        folder = library.runner.parent
        files = [library.runner, *([folder / "common.py"] if (folder / "common.py").is_file() else [])]
        if library.environment is None:
            files += [*(ROOT / "recsys_lib").glob("*.py")]
            files += [
                file for name in ("data", "models") for file in (ROOT / "recsys_lib" / name).rglob("*.py")
            ]
        unknown = [file for file in files if file not in self._hashes]
        self._hashes |= {file: code_hash(file.name, file.parent) for file in unknown}
        return [self._hashes[file] for file in sorted(files)]

    def wants(self, name: str) -> bool:
        """Whether a cell is to be run where it is not there."""
        if any(part in name for part in self.skip):
            return False
        return not self.only or any(part in name for part in self.only)

    def cell(
        self, name: str, library: Library, job: Mapping[str, Any], judge: Any, inputs: Sequence[Path] = ()
    ) -> dict[str, Any] | None:
        """The result of a cell, from the state or from a run now.

        Args:
            name: of the cell, ``"tune/Cornac/EASE"``.
            library: whose runner does it.
            job: what it is asked for.
            judge: takes the runner's result and its folder, checks them, and returns what is kept.
            inputs: the files that the job reads; others in their place are another job.

        Returns:
            What is kept, or None where the cell failed, was not asked for, or its library is not there.
        """
        parts = [json.dumps(job, sort_keys=True).encode(), *(file.read_bytes() for file in inputs)]
        parts += [str(code).encode() for code in self.code(library)]
        wanted = hashlib.sha256(b"\0".join(parts)).hexdigest()
        known = self.cells.get(name)
        if known and known["job"] == wanted and not (self.retry and "failed" in known):
            return known.get("result")
        python = self.python(library)
        if python is None or not self.wants(name):
            return None
        print(f"{name} ...", end=" ", flush=True)
        folder = self.folder / "out"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        kept: dict[str, Any] = {"job": wanted}
        try:
            usage = self._run(python, library.runner, {**job, "out": str(folder)})
            result = _read(folder)
            usage["peak_mb"] = float(result["peak_mb"])
            kept["result"] = {**judge(result, folder), "process": usage, "versions": result["versions"]}
        except (CellError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            kept["failed"] = (
                str(error) if isinstance(error, CellError) else f"{type(error).__name__}: {error}"
            )
        self.cells[name] = kept
        self._write()
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{time.perf_counter() - started:.1f} s", kept.get("failed", ""), flush=True)
        return kept.get("result")

    def failed(self) -> dict[str, str]:
        """The cells that gave no result, and why."""
        return {name: cell["failed"] for name, cell in self.cells.items() if "failed" in cell}

    def _write(self) -> None:
        with write_whole(self.state) as part:
            part.write_text(json.dumps({"cells": self.cells}, indent=0) + "\n", "utf8")

    def _run(self, python: Path, runner: Path, job: Mapping[str, Any]) -> dict[str, float]:
        """One process: the seconds that it took, on the clock and of processor time."""
        file = self.folder / "job.json"
        file.write_text(json.dumps(job), "utf8")
        own = Path(sys.executable) == python
        # The peers see nothing of the book; the book's own runner needs the library of this checkout.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {f"{name}_NUM_THREADS": "1" for name in _THREADS}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "compiled")
        if own:
            environment["PYTHONPATH"] = str(ROOT)
        log = self.folder / "log.txt"
        with log.open("w") as said:
            process = subprocess.Popen(
                [python, runner, file],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )
            status, used, wall = self._wait(process)
        if status is None:
            raise CellError(f"not done within {self.plan.limit:,.0f} s")
        if status:
            raise CellError(f"ended with {status}: {_reason(log.read_text('utf8', 'replace'))}")
        return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime}

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[int | None, Any, float]:
        """Waits for a process, or ends it and all that it started: exit status, usage, seconds."""
        started = time.perf_counter()
        while True:
            found, status, used = os.wait4(process.pid, os.WNOHANG)
            wall = time.perf_counter() - started
            if found:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, used, wall
            if wall > self.plan.limit:
                os.killpg(process.pid, signal.SIGKILL)
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                return None, used, wall
            time.sleep(0.02)


def _reason(said: str) -> str:
    """The line that says why a process ended: the last error, or else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    if not file.is_file():
        raise CellError("it ended without a result")
    found = json.loads(file.read_text("utf8"))
    if not isinstance(found, dict) or not isinstance(found.get("versions"), dict):
        raise CellError("its result is no result of a runner")
    return found


def array(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array that a runner wrote, finite and of the shape that was asked for.

    Raises:
        CellError: it is another, or not there.
    """
    if not file.is_file():
        raise CellError(f"it wrote no {file.name}")
    found = np.load(file, allow_pickle=False)
    if found.shape != shape:
        raise CellError(f"{file.name} is {found.shape}, not {shape}")
    if not np.isfinite(found).all():
        raise CellError(f"{file.name} holds what is not finite")
    return found


def write_events(file: Path, events: Interactions, *, binary: bool = True) -> Path:
    """Events as the runners read them; ``binary`` makes every rating a one."""
    ratings = np.ones(len(events)) if binary else events.ratings.numpy()
    times = events.timestamps
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file,
        users=events.users.numpy(),
        items=events.items.numpy(),
        ratings=ratings.astype(np.float32),
        timestamps=np.arange(len(events)) if times is None else times.numpy(),
        n_users=events.n_users,
        n_items=events.n_items,
    )
    return file
