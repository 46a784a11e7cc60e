"""Execute the notebooks through papermill and keep the executed copies that the book is built from.

``python -m book.execute`` runs every notebook whose copy is missing or stale; ``--check`` runs nothing and
names those. A chapter's products are its results, ``_build/results/NN_x.json``, and the copy itself,
``_build/executed/notebooks/NN_x.ipynb``. The copy is written last and names the hash of the results: it is
the sign of a finished run, and whatever interrupts a run leaves nothing that a later run takes for finished.

A copy also names the hash of each thing that it was made from: the notebook, what its code depends on in
``recsys_lib`` (the pinned data sets among it), the locked versions, the recorded runs that it shows, and for
a notebook that reads other chapters' results, those results. A change of prose alone is carried into the copy
without a run, in Markdown cells and in what ``chapter.say`` shows.
"""

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from book.dependencies import Package
from book.words import reworded, without_words
from recsys_lib.chapter.results import ChapterResults, ResultsError
from recsys_lib.chapter.runs import RecordedRun, RecordedRunError
from recsys_lib.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = 1  # raise it when copies made by an older runner must not be used
CELL_TIMEOUT = 1800  # seconds; a notebook's metadata recsys_book.timeout overrides it
HEARTBEAT = 30.0  # seconds between progress lines where there is no terminal

# One thread each: two notebooks side by side are faster than one after the other on two threads, and sums are
# added up in the same order on every machine.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # a progress bar would be left on the page,
    "PYTHONWARNINGS": "ignore:IProgress not found",  # and so would the warning that it could be prettier
    "PYTHONHASHSEED": "0",
}


class Layout:
    """Where a book's notebooks and products are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notebooks = root / "notebooks"
        self.executed = root / "_build" / "executed" / "notebooks"
        self.results = root / "_build" / "results"
        self.scratch = root / "_build" / "scratch"
        self.history = root / "book" / "history.json"

    def sources(self) -> list[Path]:
        """The committed notebooks, in the order of their names."""
        return sorted(path for path in self.notebooks.glob("*.ipynb") if not path.name.startswith("."))


class NotebookError(Exception):
    """A notebook could not be executed; the message says which cell, and why."""


# ----------------------------------------------------------------------------------------------------
# What a copy is made from
# ----------------------------------------------------------------------------------------------------


def digest(content: str | bytes) -> str:
    """A short hash, long enough to tell any two versions of a file apart."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:24]


def read_notebook(path: Path) -> dict[str, Any]:
    """The JSON of a notebook.

    Raises:
        ValueError: it is not a notebook.
    """
    notebook = json.loads(path.read_text("utf8"))
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("not a notebook")
    return notebook


def code(notebook: dict[str, Any]) -> list[str]:
    """The source of each code cell."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def needs(notebook: dict[str, Any]) -> list[str]:
    """The patterns of the chapters whose results the notebook reads: its metadata ``recsys_book.needs``."""
    return list(notebook["metadata"].get("recsys_book", {}).get("needs", []))


def upstream(path: Path, layout: Layout) -> list[str]:
    """The names of the chapters whose results a notebook reads: none that itself reads results."""
    patterns = needs(read_notebook(path))
    if not patterns:
        return []
    return [
        other.stem
        for other in layout.sources()
        if any(fnmatch(other.stem, pattern) for pattern in patterns) and not needs(read_notebook(other))
    ]


def recorded_runs(source: str, layout: Layout) -> dict[str, str]:
    """The recorded runs that code shows, by file, with a hash of each and of what its label says of its code.

    All of them, where a name is not written out.
    """
    folder = layout.root / "book" / "recorded"
    found: dict[str, str] = {}
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return found
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or getattr(call.func, "attr", "") != "recorded_run":
            continue
        given = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "name")]
        names = [
            part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        for file in [folder / f"{name}.json" for name in names] or sorted(folder.glob("*.json")):
            found[file.relative_to(layout.root).as_posix()] = _recorded(file, layout)
    return found


def _recorded(file: Path, layout: Layout) -> str:
    if not file.exists():
        return "missing"
    try:  # a page says which code has changed since, so it is made anew when that changes, and only then
        changed = RecordedRun.read(file).changed(layout.root)
    except RecordedRunError as error:
        changed = [str(error)]
    return digest(file.read_bytes() + "\0".join(changed).encode())


def inputs(path: Path, layout: Layout, package: Package) -> dict[str, str]:
    """Everything that a notebook's copy is made from, by name, with a hash of each."""
    notebook = read_notebook(path)
    cells = code(notebook)
    lock = layout.root / "requirements.lock"
    found = {
        "runner": f"{LAYOUT}, Python {sys.version_info.major}.{sys.version_info.minor}",
        "code": digest(json.dumps([without_words(cell) for cell in cells])),
        "text": digest(path.read_bytes()),
        "requirements.lock": digest(lock.read_bytes()) if lock.exists() else "missing",
    }
    # a line of IPython's own ("%time", "!ls") is no Python and imports nothing
    source = re.sub(r"^(\s*)[%!?].*$", r"\1pass", "\n".join(cells), flags=re.MULTILINE)
    for file, counted in package.closure(source).items():
        found[file.relative_to(layout.root).as_posix()] = digest(counted)
    found |= recorded_runs(source, layout)
    for name in upstream(path, layout):
        results = layout.results / f"{name}.json"
        found[f"results of {name}"] = digest(results.read_bytes()) if results.exists() else "missing"
    return found


def stale(notebook: str | Path, root: str | Path | None = None) -> str | None:
    """Why a notebook must be executed again, or None if its copy is as new as everything it is made from.

    Args:
        notebook: the committed notebook.
        root: the repository; the folder above the notebook's by default.
    """
    path = Path(notebook).resolve()
    layout = Layout(Path(root).resolve() if root else path.parents[1])
    return _stale(path, layout, Package(layout.root))


def _stale(path: Path, layout: Layout, package: Package) -> str | None:
    try:
        now = inputs(path, layout, package)
    except (ValueError, KeyError, TypeError) as error:
        return f"{path.name} cannot be read ({error})"
    copy = layout.executed / path.name
    if not copy.exists():
        return "not executed yet"
    try:
        made = read_notebook(copy)["metadata"]["recsys_book"]
        then, results_hash = dict(made["inputs"]), str(made["results_sha256"])
    except (ValueError, KeyError, TypeError):
        return "its copy is damaged"
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    if changed:
        named = [name if name not in {"code", "text"} else f"the notebook's {name}" for name in changed]
        return f"{', '.join(named[:3])}{' and more' if len(named) > 3 else ''} changed"
    results = layout.results / f"{path.stem}.json"
    if not results.exists() or hashlib.sha256(results.read_bytes()).hexdigest() != results_hash:
        return "its results are not those of its copy"
    return None


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all: under a temporary name, renamed when it is safely on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as part:
        part.write_text(text, encoding="utf8")


def sweep(layout: Layout) -> None:
    """Remove what interrupted runs left, and the products of notebooks that are gone."""
    shutil.rmtree(layout.scratch, ignore_errors=True)
    names = {path.stem for path in layout.sources()}
    for folder, suffix in ((layout.executed, ".ipynb"), (layout.results, ".json")):
        for file in folder.glob("*"):
            if file.name.startswith(".") or (file.suffix == suffix and file.stem not in names):
                file.unlink()


@contextlib.contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """Hold the lock that keeps two runs apart; the system frees it however this process ends."""
    layout.scratch.parent.mkdir(parents=True, exist_ok=True)
    with (layout.scratch.parent / "execute.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is under way here; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ----------------------------------------------------------------------------------------------------
# One notebook
# ----------------------------------------------------------------------------------------------------


class Run:
    """The execution of one notebook, from its start to the publication of its copy."""

    def __init__(self, path: Path, layout: Layout, timeout: int | None = None) -> None:
        self.path = path
        self.layout = layout
        self.name = path.stem
        self.notebook = read_notebook(path)
        self.timeout = timeout or self.notebook["metadata"].get("recsys_book", {}).get(
            "timeout", CELL_TIMEOUT
        )
        self.cell = 0
        self.started = time.monotonic()
        self.peak_memory = 0  # bytes
        self.kernel: Any = None  # psutil.Process
        self.stopped = threading.Event()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def progress(self) -> str:
        """Where it stands, in a few words; also takes a sample of the kernel's memory."""
        import psutil

        if self.kernel is not None:
            with contextlib.suppress(psutil.Error):
                family = [self.kernel, *self.kernel.children(recursive=True)]
                self.peak_memory = max(self.peak_memory, sum(process.memory_info().rss for process in family))
        return f"{self.name} {clock(self.seconds)} cell {self.cell}/{len(self.notebook['cells'])}"

    def stop(self) -> None:
        """End the kernel and everything it started, at once."""
        import psutil

        self.stopped.set()
        if self.kernel is not None:
            with contextlib.suppress(psutil.Error):
                for process in [*self.kernel.children(recursive=True), self.kernel]:
                    process.kill()

    def __call__(self, package: Package) -> None:
        """Execute the notebook and publish its copy.

        Raises:
            NotebookError: a cell failed, the kernel died, or the notebook recorded no results.
        """
        self.started = time.monotonic()
        made_from = inputs(self.path, self.layout, package)
        folder = self.layout.scratch / self.name
        for part in ("work", "results", "ipython"):
            (folder / part).mkdir(parents=True)
        for name in upstream(self.path, self.layout):
            source = self.layout.results / f"{name}.json"
            if source.exists():
                shutil.copy2(source, folder / "results")
        executed = self._execute(folder)
        self._publish(executed, folder / "results" / f"{self.name}.json", made_from)
        shutil.rmtree(folder, ignore_errors=True)

    def _execute(self, folder: Path) -> Any:
        import papermill
        from nbclient.exceptions import CellTimeoutError, DeadKernelError

        log = folder / "kernel.log"
        with log.open("w") as output:
            try:
                return papermill.execute_notebook(
                    str(self.path),
                    None,
                    kernel_name="python3",
                    progress_bar=False,
                    request_save_on_cell_execute=False,
                    start_timeout=180,
                    execution_timeout=self.timeout,
                    kernel_manager_class=self._manager(folder, output),
                    on_cell_start=self._cell_started,
                )
            except papermill.PapermillExecutionError as error:
                raise NotebookError(self._failure(error)) from error
            except CellTimeoutError as error:
                raise NotebookError(
                    f"{self._where()} took more than {self.timeout} s; make it faster, or raise "
                    "recsys_book.timeout in the notebook's metadata"
                ) from error
            except DeadKernelError as error:
                last = "\n".join(log.read_text("utf8", errors="replace").splitlines()[-5:])
                raise NotebookError(
                    f"the kernel died in {self._where()}, having held {self.peak_memory / 1e6:.0f} MB; "
                    f"a kernel that is killed has usually run out of memory\n{last}".rstrip()
                ) from error

    def _manager(self, folder: Path, output: Any) -> type:
        """A kernel manager that starts the kernel in an empty folder, with this run's environment."""
        import psutil
        from jupyter_client.manager import AsyncKernelManager

        run = self
        settings = {
            **KERNEL_ENVIRONMENT,
            "RECSYS_RESULTS": str(folder / "results"),
            "RECSYS_PIPELINE": str(self.layout.root / "_build" / "pipeline"),  # that `make serve-api` serves
            "IPYTHONDIR": str(folder / "ipython"),  # not the user's own start-up files
            # the library whose files were hashed is the one that runs
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(self.layout.root), os.environ.get("PYTHONPATH")])
            ),
        }

        class Manager(AsyncKernelManager):
            # a kernel manager's methods are declared as if they were synchronous
            async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
                options |= {"env": {**os.environ, **settings}, "cwd": str(folder / "work")}
                await super().start_kernel(**options, stdout=output, stderr=output)
                provisioner: Any = self.provisioner
                run.kernel = psutil.Process(provisioner.pid)
                if run.stopped.is_set():
                    run.stop()

        return Manager

    def _cell_started(self, cell: Any, cell_index: int) -> None:
        self.cell = cell_index + 1

    def _where(self, cell: int | None = None) -> str:
        number = cell or self.cell
        source = "".join(self.notebook["cells"][max(number, 1) - 1]["source"]).strip().splitlines()
        return f"cell {number} of {len(self.notebook['cells'])} ({source[0] if source else 'empty'})"

    def _failure(self, error: Any) -> str:
        """The cell, the line and the error of a failed notebook."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        lines = error.source.splitlines()
        match = re.search(rf"Cell In\[{error.exec_count}\], line (\d+)", plain)
        number = int(match[1]) if match else 1
        line = lines[number - 1].strip() if number <= len(lines) else ""
        trace = "\n".join(f"    {text}" for text in plain.splitlines()[-12:])
        where = f"cell {error.cell_index + 1} of {len(self.notebook['cells'])}, line {number}: {line}"
        return f"{where}\n    {error.ename}: {error.evalue}\n{trace}"

    def _publish(self, executed: Any, results: Path, made_from: dict[str, str]) -> None:
        """Write the results, then the copy."""
        for number, cell in enumerate(executed.cells, 1):
            if any(output.output_type == "error" for output in cell.get("outputs", [])):
                raise NotebookError(f"{self._where(number)} ended in an error that was not raised")
        if inputs(self.path, self.layout, Package(self.layout.root)) != made_from:
            raise NotebookError("something that it is made from changed while it ran; run it again")
        record = replace(self._read_results(results), title=title(self.notebook))
        text = record.text()
        executed.metadata.pop("papermill", None)
        for cell in executed.cells:
            for key in ("papermill", "execution"):
                cell.metadata.pop(key, None)
        own = executed.metadata.get("recsys_book", {})
        self.peak_memory = max(self.peak_memory, int((record.peak_memory_mb or 0) * 1e6))
        executed.metadata["recsys_book"] = {
            **own,
            "hash": digest(json.dumps(made_from, sort_keys=True)),
            "inputs": made_from,
            "seconds": round(self.seconds, 1),
            "peak_memory_mb": round(self.peak_memory / 1e6),
            "device": record.device,
            "hardware": record.hardware,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "versions": dict(record.versions),
            "results_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        copy = json.dumps(executed, indent=1, ensure_ascii=False) + "\n"
        if self.stopped.is_set():
            raise NotebookError("stopped")
        write(self.layout.results / f"{self.name}.json", text)
        write(self.layout.executed / self.path.name, copy)

    def _read_results(self, path: Path) -> ChapterResults:
        if not path.exists():
            raise NotebookError("it recorded no results; end it with chapter.finish()")
        try:
            return ChapterResults.parse(path.read_bytes(), self.name)
        except ResultsError as error:
            raise NotebookError(f"its results cannot be read: {error}") from error


def title(notebook: dict[str, Any]) -> str:
    """The text of the first heading, or nothing."""
    for cell in notebook["cells"]:
        match = re.match(r"#\s+(.+)", "".join(cell["source"]))
        if cell["cell_type"] == "markdown" and match:
            return match[1].strip()
    return ""


def refresh(path: Path, layout: Layout, package: Package) -> bool:
    """Carry a change of prose into the copy; False if more than the prose has changed."""
    copy = layout.executed / path.name
    now = inputs(path, layout, package)
    try:
        executed = read_notebook(copy)
        made = executed["metadata"]["recsys_book"]
        if {**made["inputs"], "text": ""} != {**now, "text": ""}:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    results = layout.results / f"{path.stem}.json"
    if not results.exists() or hashlib.sha256(results.read_bytes()).hexdigest() != made["results_sha256"]:
        return False
    notebook = read_notebook(path)
    try:
        if title(notebook) != ChapterResults.read(results).title:
            return False  # the title is part of the results
    except ResultsError:
        return False
    outputs = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            done = outputs.pop(0)
            said = reworded(done["outputs"], "".join(done["source"]), "".join(cell["source"]))
            if said is None:
                return False
            cell["outputs"], cell["execution_count"] = said, done["execution_count"]
    own = notebook["metadata"].get("recsys_book", {})
    made |= {**own, "inputs": now, "hash": digest(json.dumps(now, sort_keys=True))}
    notebook["metadata"] = {**executed["metadata"], "recsys_book": made}
    write(copy, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return True


# ----------------------------------------------------------------------------------------------------
# All notebooks
# ----------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """A duration as ``2:05`` or ``1:02:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Screen:
    """Lines for what has happened, and one line that is kept up to date where there is a terminal."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.shown = 0.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(f"\r\x1b[K{text}" if self.live else text, flush=True)

    def status(self, runs: list[Run]) -> None:
        """Show where the notebooks that are running stand."""
        text = " · ".join(run.progress() for run in runs)
        if self.live:
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif time.monotonic() - self.shown > HEARTBEAT:
            self.shown = time.monotonic()
            print(f"  running  {text}", flush=True)


def execute(
    layout: Layout, *, only: str = "", jobs: int = 2, force: bool = False, timeout: int | None = None
) -> list[str]:
    """Execute every notebook that needs it.

    Args:
        layout: where the notebooks and products are.
        only: the name of one notebook, with or without its suffix; nothing else is run.
        jobs: how many run at a time.
        force: run also those whose copies are fresh.
        timeout: seconds that a cell may take, instead of what the notebook says.

    Returns:
        The names of the notebooks that failed, and of those that could not run for it.

    Raises:
        NotebookError: there is no such notebook.
        KeyboardInterrupt: it was interrupted; no kernel is left.
    """
    sources = layout.sources()
    if only:
        sources = [path for path in sources if path.stem == only.removesuffix(".ipynb")]
        if not sources:
            known = ", ".join(path.stem for path in layout.sources())
            raise NotebookError(f"there is no notebook {only!r}; there are {known}")
    screen = Screen()
    failed: list[str] = []
    begin = time.monotonic()
    with only_one(layout):
        sweep(layout)
        package = Package(layout.root)
        first = [path for path in sources if not needs(read_notebook(path))]
        for wave in (first, [path for path in sources if path not in first]):
            blocked = [path for path in wave if set(upstream(path, layout)) & set(failed)]
            for path in blocked:
                screen.say(f"  waiting  {path.stem}: needs a chapter that failed")
            todo = _to_run([path for path in wave if path not in blocked], layout, package, force, screen)
            failed += _run_all([Run(path, layout, timeout) for path in todo], package, jobs, screen)
            failed += [path.stem for path in blocked]
    if not failed:
        screen.say(f"notebooks up to date: {len(sources)} ({clock(time.monotonic() - begin)})")
    return failed


def _to_run(paths: list[Path], layout: Layout, package: Package, force: bool, screen: Screen) -> list[Path]:
    """The notebooks to run, those that took longest first, so that none is left alone at the end.

    What was never run here goes by the committed history. What is not known there either goes first of all;
    among such, what has more cells.
    """
    todo = []
    for path in paths:
        reason = "asked for" if force else _stale(path, layout, package)
        if reason is None:
            continue
        if not force and refresh(path, layout, package):
            screen.say(f"  text     {path.stem}: carried into its copy")
            continue
        screen.say(f"  to run   {path.stem}: {reason}")
        todo.append(path)

    before = seconds_before(layout)

    def work(path: Path) -> tuple[float, int]:
        try:
            return float(read_notebook(layout.executed / path.name)["metadata"]["recsys_book"]["seconds"]), 0
        except (OSError, ValueError, KeyError, TypeError):
            return before.get(path.stem, float("inf")), len(read_notebook(path)["cells"])

    return sorted(todo, key=work, reverse=True)


def seconds_before(layout: Layout) -> dict[str, float]:
    """What each chapter took when the committed history last told of it: a hint, so damage is no error."""
    try:
        entries = json.loads(layout.history.read_text("utf8"))
        return {
            name: float(seconds) for entry in entries for name, seconds in entry["chapters_s"].items()
        }  # of equal names the last one stays
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _run_all(runs: list[Run], package: Package, jobs: int, screen: Screen) -> list[str]:
    """Run notebooks side by side; the names of those that failed."""
    failed = []
    under_way: dict[Future[None], Run] = {}
    waiting = list(runs)
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        try:
            while waiting or under_way:
                while waiting and len(under_way) < jobs:
                    run = waiting.pop(0)
                    screen.say(f"  start    {run.name}")
                    under_way[pool.submit(run, package)] = run
                done, _ = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    run = under_way.pop(future)
                    error = future.exception()
                    if error is None:
                        made = f"{run.seconds:.0f} s, {run.peak_memory / 1e6:.0f} MB"
                        screen.say(f"  done     {run.name}: {made}")
                    else:
                        failed.append(run.name)
                        kind = "" if isinstance(error, NotebookError) else f"{type(error).__name__}: "
                        screen.say(f"  FAILED   {run.name}: {kind}{error}")
                screen.status(list(under_way.values()))
        except BaseException:
            for run in runs:
                run.stop()
            raise
    return failed


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m book.execute", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--check", action="store_true", help="run nothing; exit 1 and name what is stale or missing"
    )
    parser.add_argument("--only", metavar="NAME", default="", help="run this notebook alone")
    parser.add_argument(
        "--jobs", type=int, default=2, help="how many notebooks at a time (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    parser.add_argument("--timeout", type=int, help="seconds that a cell may take")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    layout = Layout(options.root.resolve())
    if options.check:
        reasons = {path.stem: stale(path, layout.root) for path in layout.sources()}
        for name, reason in reasons.items():
            if reason:
                print(f"{name}: {reason}; run `make execute`")
        return 1 if any(reasons.values()) else 0
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not one of the user's
    try:
        failed = execute(
            layout, only=options.only, jobs=options.jobs, force=options.force, timeout=options.timeout
        )
    except KeyboardInterrupt:
        print("\ninterrupted; what had finished is kept", file=sys.stderr)
        return 130
    except (NotebookError, OSError) as error:
        print(f"cannot execute the notebooks: {error}", file=sys.stderr)
        return 1
    if failed:
        print(f"\n{len(failed)} not executed: {', '.join(failed)}. Nothing is published.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
