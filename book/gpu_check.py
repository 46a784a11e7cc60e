"""Run the library's tests and one chapter on this machine's accelerator, and record what came of it.

``python -m book.gpu_check`` takes CUDA, else MPS. It runs the library's quick tests of what works on any
device there, side by side where pytest-xdist is installed. Then it runs the chapter that is the quickest to
execute, in a folder of its own, so that the book's copies and results stay as they are. The outcome is in
``_build/gpu_check.json``, also where something failed, is not installed, or ran out of time.

The exit status is 0 if everything passed and 1 if not. It is 3 where there is no accelerator; then nothing is
checked and nothing written. This repository need not be installed: ``PYTHONPATH=. python -m book.gpu_check``
works with any Python that has torch, pytest, papermill and what the library imports.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from book.execute import ROOT, Layout, NotebookError, Run, code, needs, read_notebook, seconds_before, write

PASSED, FAILED, NO_ACCELERATOR = 0, 1, 3
LIMIT = 480.0  # seconds for everything
TESTS_SHARE = 2 / 3  # of the time, so that tests which hang leave some to the chapter
GRACE = 10.0  # seconds for what was ended to be gone; what hangs in a driver cannot be ended at all
SLOWEST = 5  # so many tests are named with their seconds
WORKERS = 8  # processes of tests at most; each holds half a gigabyte of a GPU before it has done anything
OUT_OF_TIME = "ran out of time"
REPORT = "GPU_CHECK_REPORT"  # the environment variable that tells pytest's process where to report

# In a process of its own: a driver may hang, and this one would hold memory of the device all along.
PROBE = """
import json, platform, sys
import torch
from recsys_lib.devices import resolve_device

device = resolve_device(sys.argv[1])
torch.zeros(1, device=device).sum().item()
name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.platform()
versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
print(json.dumps({"device": str(device), "device_name": name, **versions}))
"""

PEAK = """
import json, pathlib, torch
pathlib.Path("peak.json").write_text(json.dumps(torch.cuda.max_memory_allocated()))
"""


class CheckError(Exception):
    """Nothing could be checked; the message says why."""


def probe(device: str, limit: float) -> dict[str, Any]:
    """The device, its name, and the versions of what drives it.

    Args:
        device: what `recsys_lib.devices.resolve_device` takes.
        limit: seconds that it may take.

    Raises:
        CheckError: torch is not here, fails or does not answer, or there is no such device.
    """
    with tempfile.TemporaryFile("w+", encoding="utf8") as output:
        status = _run([sys.executable, "-c", PROBE, device], limit, output)
        output.seek(0)
        last = (output.read().strip().splitlines() or ["torch ended without a word"])[-1]
    if status is None:
        raise CheckError(f"torch did not answer within {limit:.0f} s")
    if status:
        raise CheckError(last)
    found: dict[str, Any] = json.loads(last)
    return found


def _run(command: list[str], limit: float, output: Any = None, **environment: str) -> int | None:
    """Run a command on this repository's packages.

    Returns:
        Its status, or None if the time ran out and it was ended.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(  # noqa: S603 - this Python, on this module's own arguments
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def missing(*packages: str) -> str:
    """A sentence that names those packages that are not installed; empty if all are."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not run: not installed here: {', '.join(lacking)}" if lacking else ""


# ----------------------------------------------------------------------------------------------------
# The library's tests
# ----------------------------------------------------------------------------------------------------


def run_tests(tests: Path, device: str, limit: float, workers: int | None = None) -> dict[str, Any]:
    """Run the tests that are not slow and take the fixture ``device`` on that device.

    Args:
        tests: the folder of the tests.
        device: what they find in ``RECSYS_TEST_DEVICE``.
        limit: seconds; then pytest is ended, and what it had reported by then counts.
        workers: processes that share the tests; by default as this machine's processors and plugins allow.
    """
    problem = missing("pytest")
    if problem:
        return summary([], problem)
    options = ["-q", "--tb=short", "-m", "not slow", "--continue-on-collection-errors"]
    plugins = ["-p", "no:cacheprovider", "-p", "book.gpu_check"]
    if workers is None:
        workers = 1 if missing("xdist") else min(os.cpu_count() or 1, WORKERS)
    if workers > 1:
        plugins += ["-n", str(workers), "--dist", "worksteal"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.jsonl")
        report.touch()
        command = [sys.executable, "-m", "pytest", *options, *plugins, str(tests)]
        status = _run(command, limit, RECSYS_TEST_DEVICE=device, **{REPORT: str(report)})
        notes = [json.loads(line) for line in report.read_text("utf8").splitlines()]
    if status is None:
        problem = OUT_OF_TIME
    elif status == 5:
        problem = "no test was found"
    elif status and not (status == 1 and any(note.get("outcome") == "failed" for note in notes)):
        problem = f"pytest ended with status {status}"
    return summary(notes, problem)


def summary(notes: Iterable[dict[str, Any]], problem: str) -> dict[str, Any]:
    """Counts and durations of tests, from what the hooks below noted.

    Args:
        notes: in the order in which they were made.
        problem: what went wrong with the run as a whole; empty if it came to its end. The tests that were
            running then are added.
    """
    outcomes: dict[str, str] = {}
    errors: dict[str, str] = {}
    seconds: Counter[str] = Counter()
    peaks: list[int] = []
    under_way: dict[str, None] = {}  # a set that keeps its order
    for note in notes:
        if "peak" in note:
            peaks.append(note["peak"])
            continue
        test, phase, outcome = note["test"], note["phase"], note["outcome"]
        under_way.pop(test, None)
        if phase != "teardown":
            under_way[test] = None
        seconds[test] += note["seconds"]
        if outcome == "failed":
            errors.setdefault(test, note["error"])
        if outcome in {"failed", "skipped"} or phase == "call":
            outcomes[test] = "failed" if test in errors else outcome
    counts = Counter(outcomes.values())
    return {
        "problem": f"{problem} in {', '.join(under_way)}" if problem and under_way else problem,
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "seconds": round(sum(seconds.values()), 1),
        "peak_device_memory_mb": max(peaks, default=None),
        "failures": [{"test": test, "error": error} for test, error in errors.items()],
        "slowest": [{"test": test, "seconds": round(took, 1)} for test, took in seconds.most_common(SLOWEST)],
    }


# pytest takes this module as a plugin in its own process. Unlike a report that is written at the end, a line
# for each step tells what had passed, and what was running, when the time ran out.


def _note(**what: Any) -> None:
    with Path(os.environ[REPORT]).open("a", encoding="utf8") as file:
        file.write(json.dumps(what) + "\n")


def _first_line(report: Any) -> str:
    """The first line of a failed report's error."""
    crash = getattr(report.longrepr, "reprcrash", None)
    plain = report.longrepr if isinstance(report.longrepr, str) else report.longreprtext
    text = crash.message if crash else plain
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return str([*marked, *text.strip().splitlines(), "no message"][0])[:500]


class Notes:
    """The hooks that note what the tests do."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note the start of a test."""
        _note(test=nodeid, phase="start", outcome="", seconds=0.0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note the outcome of a test's set-up, call or teardown."""
        error = _first_line(report) if report.failed else ""
        took = report.duration
        _note(test=report.nodeid, phase=report.when, outcome=report.outcome, seconds=took, error=error)

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file of tests that cannot be imported; it counts as one failed test."""
        if report.failed:
            lost = {"outcome": "failed", "seconds": 0.0, "error": _first_line(report)}
            _note(test=report.nodeid, phase="teardown", **lost)


def pytest_configure(config: Any) -> None:
    """Note what happens. Of several processes that which hands out the tests hears of each step, and does."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Notes())


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the tests that run on the CPU wherever they run."""
    kinds: dict[bool, list[Any]] = {True: [], False: []}
    for item in items:
        kinds["device" in item.fixturenames].append(item)
    items[:] = kinds[True]
    config.hook.pytest_deselected(items=kinds[False])


def pytest_sessionfinish() -> None:
    """Note the most memory that this process's torch held on a CUDA device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        _note(peak=round(torch.cuda.max_memory_allocated() / 1e6))


# ----------------------------------------------------------------------------------------------------
# One chapter
# ----------------------------------------------------------------------------------------------------


def quickest(layout: Layout) -> Path:
    """The chapter that took the shortest time, here or else when the book's history last told of it.

    If none is known, the one with the fewest code cells. Of those that record results and read none: the
    others show nothing without them.

    Raises:
        CheckError: there is no such chapter.
    """
    before = seconds_before(layout)

    def work(path: Path) -> tuple[float, int]:
        cells = len(code(read_notebook(path)))
        try:
            made = read_notebook(layout.executed / path.name)["metadata"]["recsys_book"]
            return float(made["seconds"]), cells
        except (OSError, ValueError, KeyError, TypeError):
            return before.get(path.stem, float("inf")), cells

    notebooks = {path: read_notebook(path) for path in layout.sources()}
    candidates = [
        path
        for path, notebook in notebooks.items()
        if not needs(notebook) and any("chapter.finish()" in source for source in code(notebook))
    ]
    if not candidates:
        raise CheckError("there is no chapter that records results and reads none")
    return min(candidates, key=work)


def run_chapter(source: Path, device: str, limit: float) -> dict[str, Any]:
    """Execute a chapter on a device, in a folder that is removed afterwards.

    Args:
        source: the committed notebook.
        device: what its parameter ``device`` is set to.
        limit: seconds; then its kernel is ended.
    """
    found: dict[str, Any] = {
        "name": source.stem,
        "problem": "",
        "seconds": 0.0,
        "peak_device_memory_mb": None,
    }
    found["problem"] = missing("papermill", "ipykernel", "psutil")
    if found["problem"]:
        return found
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("work", "results", "ipython"):
            (folder / part).mkdir()
        run = Run(_prepared(source, device, folder), Layout(ROOT))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                run._execute(folder)
            except BaseException as error:  # noqa: BLE001 - it is told to whoever waits for this thread
                errors.append(error)

        # a daemon, so that not even a kernel that cannot be ended holds this process
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            thread.join(limit)
            found["seconds"] = round(run.seconds, 1)
            if thread.is_alive():
                found["problem"] = f"{OUT_OF_TIME} in cell {run.cell} of {len(run.notebook['cells'])}"
        finally:
            if thread.is_alive():
                run.stop()
                thread.join(GRACE)
        if errors and not found["problem"]:
            kind = "" if isinstance(errors[0], NotebookError) else f"{type(errors[0]).__name__}: "
            print(f"{source.stem}: {kind}{errors[0]}", flush=True)
            found["problem"] = kind + "; ".join(
                line.strip() for line in str(errors[0]).strip().splitlines()[:2]
            )
        found["problem"] = found["problem"] or wrong_results(folder / "results", source.stem, device)
        peak = folder / "work" / "peak.json"
        if peak.exists():
            found["peak_device_memory_mb"] = round(json.loads(peak.read_text("utf8")) / 1e6)
    return found


def _prepared(source: Path, device: str, folder: Path) -> Path:
    """A copy of a notebook with its parameter set; on CUDA it ends by saying how much memory it held."""
    from nbformat.v4 import new_code_cell
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook

    notebook = parameterize_notebook(
        load_notebook_node(str(source)), {"device": device}, kernel_name="python3", language="python"
    )
    if device.startswith("cuda"):
        notebook.cells.append(new_code_cell(PEAK.strip()))
    copy = folder / source.name
    write_ipynb(notebook, str(copy))
    return copy


def wrong_results(folder: Path, name: str, device: str) -> str:
    """What is wrong with the results of a chapter that came to its end; empty if nothing is."""
    try:
        ran_on = str(json.loads((folder / f"{name}.json").read_text("utf8"))["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it recorded no results"
    same = ran_on.partition(":")[0] == device.partition(":")[0]
    return "" if same else f"it ran on {ran_on}, not on {device}"


# ----------------------------------------------------------------------------------------------------
# The command
# ----------------------------------------------------------------------------------------------------


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m book.gpu_check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for everything (default: %(default)g)"
    )
    parser.add_argument(
        "--workers", type=int, help=f"processes of tests (default: one for each processor, {WORKERS} at most)"
    )
    parser.add_argument("--device", default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--tests", type=Path, default=ROOT / "tests" / "library", help=argparse.SUPPRESS)
    parser.add_argument("--notebook", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "_build" / "gpu_check.json", help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not one of the user's
    begin = time.monotonic()
    record: dict[str, Any] = {
        "ok": False,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "problem": "interrupted",
        **dict.fromkeys(["device", "device_name", "python", "torch", "cuda"]),
        "limit_s": options.limit,
        "seconds": 0.0,
        "tests": None,
        "chapter": None,
    }

    def left() -> float:
        return max(begin + options.limit - time.monotonic(), 0.0)

    try:
        record |= probe(options.device, left())
        if options.device == "auto" and record["device"] == "cpu":
            print("There is no accelerator here, neither CUDA nor MPS: nothing was checked.")
            return NO_ACCELERATOR
        device = record["device"]
        print(f"{device}: {record['device_name']}, torch {record['torch']}", flush=True)
        record["tests"] = run_tests(options.tests, device, left() * TESTS_SHARE, options.workers)
        notebook = options.notebook or quickest(Layout(ROOT))
        print(f"chapter: {notebook.stem}", flush=True)
        record["chapter"] = run_chapter(notebook, device, left())
        record["problem"] = ""
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it was, the record tells it
        kind = "" if isinstance(error, CheckError) else f"{type(error).__name__}: "
        record["problem"] = f"{kind}{error}"
    parts = [record, *filter(None, [record["tests"], record["chapter"]])]
    failures = record["tests"]["failures"] if record["tests"] else []
    record["ok"] = not failures and not any(part["problem"] for part in parts)
    record["seconds"] = round(time.monotonic() - begin, 1)
    write(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(told(record)))
    print(f"written to {options.output}")
    return PASSED if record["ok"] else FAILED


def told(record: dict[str, Any]) -> list[str]:
    """What came of it, in a few lines."""
    lines = [f"not checked in full: {record['problem']}"] if record["problem"] else []
    if tests := record["tests"]:
        counts = ", ".join(f"{tests[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        lines.append(f"tests: {counts}, {tests['seconds']:.0f} s")
        lines += [f"  FAILED {failure['test']}: {failure['error']}" for failure in tests["failures"]]
        lines += [f"  {tests['problem']}"] if tests["problem"] else []
        if tests["problem"].startswith(OUT_OF_TIME):
            lines.append(f"  more than {record['limit_s']:g} s are needed here; --limit gives it more")
    if chapter := record["chapter"]:
        lines.append(f"chapter {chapter['name']}: {chapter['problem'] or 'done'}, {chapter['seconds']:.0f} s")
    return [*lines, f"the check {'passed' if record['ok'] else 'FAILED'}"]


if __name__ == "__main__":
    sys.exit(main())
