"""The check on an accelerator, tried on the CPU: what it records when all is well, and when it is not."""

import json
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from book import gpu_check
from book.execute import ROOT, Layout
from book.gpu_check import _prepared, quickest, run_chapter, run_tests, summary, wrong_results

FIXTURE = """
import os
import pytest

@pytest.fixture
def device():
    return os.environ["RECSYS_TEST_DEVICE"]
"""
GOOD = """
import pytest

@pytest.fixture
def there(device):
    return device

def test_device(there):
    assert there == "cpu"

def test_skipped(device):
    pytest.skip("not today")

@pytest.mark.slow
def test_slow(device):
    raise AssertionError

def test_the_same_on_any_device():
    raise AssertionError
"""
BAD = """
import pytest

def test_one(device):
    assert 1 + 1 == 3, "arithmetic\\nand more"

@pytest.fixture
def broken():
    yield
    raise OSError("left open")

def test_two(device, broken):
    pass
"""
RECORD = """
import json, os, pathlib
record = {"chapter": "01_a", "device": device}
pathlib.Path(os.environ["RECSYS_RESULTS"], "01_a.json").write_text(json.dumps(record))
pathlib.Path("left_over.txt").write_text("")
"""


@pytest.fixture
def tests(tmp_path):
    """A folder with one file of tests that pass."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text(FIXTURE)
    (tmp_path / "tests" / "test_good.py").write_text(GOOD)
    return tmp_path / "tests"


def add(folder, name, *cells, needs=None, seconds=None):
    """Write a small chapter, and its executed copy if it took some seconds."""
    layout = Layout(folder)
    layout.notebooks.mkdir(exist_ok=True)
    parameters = new_code_cell('device = "auto"', metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, cells)])
    notebook.metadata["recsys_book"] = {"needs": needs} if needs else {}
    path = layout.notebooks / f"{name}.ipynb"
    path.write_text(nbformat.writes(notebook))
    if seconds is not None:
        layout.executed.mkdir(parents=True, exist_ok=True)
        notebook.metadata["recsys_book"]["seconds"] = seconds
        (layout.executed / path.name).write_text(nbformat.writes(notebook))
    return path


def check(tmp_path, notebook, *options):
    """Run the command; its end, and what it recorded."""
    output = tmp_path / "gpu_check.json"
    paths = ["--tests", tmp_path / "tests", "--notebook", notebook, "--output", output]
    command = [sys.executable, "-m", "book.gpu_check", "--device", "cpu", *map(str, paths), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return done, json.loads(output.read_text())


def products():
    """The book's own copies and results, with the time when each was written."""
    folders = (Layout(ROOT).executed, Layout(ROOT).results)
    return {file: file.stat().st_mtime_ns for folder in folders for file in folder.glob("*")}


def test_what_passed_is_recorded(tmp_path, tests):
    before = products()
    notebook = add(tmp_path, "01_a", RECORD)
    done, record = check(tmp_path, notebook)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (record["ok"], record["problem"], record["device"]) == (True, "", "cpu")
    assert record["torch"]
    assert [record["tests"][name] for name in ("passed", "failed", "skipped")] == [1, 0, 1]
    assert record["tests"]["slowest"][0]["test"].endswith(("test_good.py::test_device", "::test_skipped"))
    assert (record["chapter"]["name"], record["chapter"]["problem"]) == ("01_a", "")
    assert "tests: 1 passed, 0 failed, 1 skipped" in done.stdout
    assert "the check passed" in done.stdout
    # neither the book's products nor the notebook's folder are touched
    assert products() == before
    assert [path.name for path in notebook.parent.iterdir()] == ["01_a.ipynb"]
    assert "injected" not in notebook.read_text()


def test_what_failed_is_recorded(tmp_path, tests):
    (tests / "test_bad.py").write_text(BAD)
    (tests / "test_worse.py").write_text("import no_such_module")
    (tmp_path / "gpu_check.json").write_text('{"ok": true}')
    notebook = add(tmp_path, "01_a", "a = 1", "b = 0\na / b", RECORD)
    done, record = check(tmp_path, notebook)
    assert done.returncode == 1, done.stdout + done.stderr
    assert record["ok"] is False
    assert [record["tests"][name] for name in ("passed", "failed", "skipped")] == [1, 3, 1]
    found = {item["test"].rpartition("/")[2]: item["error"] for item in record["tests"]["failures"]}
    assert found == {
        "test_bad.py::test_one": "AssertionError: arithmetic",
        "test_bad.py::test_two": "OSError: left open",
        "test_worse.py": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert record["chapter"]["problem"] == "cell 4 of 5, line 2: a / b; ZeroDivisionError: division by zero"
    assert "FAILED" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_check.json", "notebooks", "tests"]


def test_no_time_at_all_is_recorded(tmp_path, tests):
    done, record = check(tmp_path, add(tmp_path, "01_a", RECORD), "--limit", "0.01")
    assert done.returncode == 1
    assert "torch did not answer within 0 s" in record["problem"]
    assert (record["ok"], record["tests"], record["chapter"]) == (False, None, None)
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_here_is_recorded(tmp_path, tests):
    done, record = check(tmp_path, add(tmp_path, "01_a", RECORD), "--device", "cuda:99")
    assert done.returncode == 1
    assert 'device "cuda:99" was asked for' in record["problem"]


def ended(pid):
    """Whether a process that was killed is gone; that takes the system a moment."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_tests_that_take_too_long_are_ended(tests):
    """With whatever they have started."""
    start = "import pathlib, subprocess, sys, time\n\ndef test_sleep(device):\n"
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])"
    note = f"pathlib.Path({str(tests / 'pid')!r}).write_text(str({child}.pid))"
    (tests / "test_good.py").write_text(f"{start}    {note}\n    time.sleep(300)\n")
    limit = 5.0
    found = run_tests(tests, "cpu", limit)
    while not (tests / "pid").exists():  # on a busy machine it had not even begun
        limit *= 2
        found = run_tests(tests, "cpu", limit)
    assert found["problem"].startswith("ran out of time in ")
    assert found["problem"].endswith("test_good.py::test_sleep")
    assert found["passed"] == found["failed"] == 0
    assert ended(int((tests / "pid").read_text()))


CRASH = "import os\n\ndef test_crash(device):\n    os._exit(9)\n"


def test_a_crash_names_the_test(tests):
    (tests / "test_good.py").write_text(CRASH)
    found = run_tests(tests, "cpu", 120, workers=1)
    assert found["problem"].startswith("pytest ended with status 9 in ")
    assert found["problem"].endswith("test_good.py::test_crash")


def test_with_workers_a_crash_is_a_test_that_failed(tests):
    (tests / "test_worse.py").write_text(CRASH)
    found = run_tests(tests, "cpu", 120, workers=2)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    (failure,) = found["failures"]
    assert failure["test"].endswith("test_worse.py::test_crash")
    assert "crashed" in failure["error"]


@pytest.mark.parametrize("workers", [1, 3])
def test_each_test_is_counted_once(tests, workers):
    (tests / "test_bad.py").write_text(BAD)
    found = run_tests(tests, "cpu", 120, workers=workers)
    assert [found[name] for name in ("problem", "passed", "failed", "skipped")] == ["", 1, 2, 1]


def test_a_folder_without_tests_does_not_pass(tests):
    (tests / "test_good.py").unlink()
    assert run_tests(tests, "cpu", 120)["problem"] == "no test was found"


def test_a_chapter_that_takes_too_long_is_ended(tmp_path):
    children = psutil.Process().children(recursive=True)
    notebook = add(tmp_path, "01_a", "import time\ntime.sleep(300)", RECORD)
    found = run_chapter(notebook, "cpu", 1)
    assert found["problem"].startswith("ran out of time in cell ")
    assert all(
        ended(child.pid) for child in psutil.Process().children(recursive=True) if child not in children
    )


def test_on_cuda_a_chapter_ends_by_saying_how_much_memory_it_held(tmp_path):
    notebook = nbformat.read(_prepared(add(tmp_path, "01_a", "1 + 1"), "cuda", tmp_path), as_version=4)
    assert [cell.source.splitlines()[-1] for cell in notebook.cells[:3]] == [
        'device = "auto"',
        'device = "cuda"',
        "1 + 1",
    ]
    compile(notebook.cells[3].source, "the last cell", "exec")
    assert "peak.json" in notebook.cells[3].source


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"device": "cuda"}', ""),
        ('{"device": "cpu"}', "it ran on cpu, not on cuda:0"),
        ("{", "it recorded no results"),
        (None, "it recorded no results"),
    ],
)
def test_the_results_say_where_a_chapter_ran(tmp_path, text, problem):
    if text:
        (tmp_path / "01_a.json").write_text(text)
    assert wrong_results(tmp_path, "01_a", "cuda:0") == problem


def test_what_is_not_installed_is_named(monkeypatch, tmp_path, tests):
    monkeypatch.setattr(
        gpu_check.importlib.util, "find_spec", lambda name: None if name in {"papermill", "pytest"} else name
    )
    problem = "not run: not installed here: papermill"
    assert run_chapter(add(tmp_path, "01_a"), "cpu", 60)["problem"] == problem
    assert run_tests(tests, "cpu", 60)["problem"] == "not run: not installed here: pytest"


def test_where_there_is_no_accelerator_nothing_is_checked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "probe", lambda device, limit: {"device": "cpu"})
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    assert gpu_check.main(["--output", str(tmp_path / "gpu_check.json")]) == 3
    assert capsys.readouterr().out.startswith("There is no accelerator here")
    assert not list(tmp_path.iterdir())


def test_an_interruption_is_recorded(monkeypatch, tmp_path):
    def interrupted(device, limit):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "probe", interrupted)
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    assert gpu_check.main(["--output", str(tmp_path / "gpu_check.json")]) == 1
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert (record["ok"], record["problem"]) == (False, "interrupted")


def test_all_that_ran_when_the_time_ran_out_are_named():
    notes = [note("a", "start", ""), note("b", "start", ""), note("a", "teardown"), note("c", "setup")]
    assert summary(notes, "ran out of time")["problem"] == "ran out of time in b, c"


def test_what_needs_more_time_says_how_to_give_it():
    tests = summary([note("a", "setup")], "ran out of time")
    record = {"problem": "", "limit_s": 480.0, "tests": tests, "chapter": None, "ok": False}
    assert "  more than 480 s are needed here; --limit gives it more" in gpu_check.told(record)
    tests["problem"] = "no test was found"
    assert not any("--limit" in line for line in gpu_check.told(record))


def test_the_quickest_chapter(tmp_path):
    layout = Layout(tmp_path)
    with pytest.raises(gpu_check.CheckError, match="no chapter"):
        quickest(layout)
    add(tmp_path, "01_a", "chapter.finish()", "2", "3")
    add(tmp_path, "02_b", "chapter.finish()", "2")
    add(tmp_path, "03_no_results")
    add(tmp_path, "99_all", "chapter.finish()", needs=["*"])
    # by its cells where none was executed, else by its time
    assert quickest(layout).stem == "02_b"
    layout.history.parent.mkdir()
    layout.history.write_text('[{"chapters_s": {"01_a": 70.0, "02_b": 80.0}}]')
    assert quickest(layout).stem == "01_a"
    add(tmp_path, "02_b", "chapter.finish()", "2", seconds=60.0)
    assert quickest(layout).stem == "02_b"
    add(tmp_path, "01_a", "chapter.finish()", "2", "3", seconds=50.0)
    assert quickest(layout).stem == "01_a"
    add(tmp_path, "02_b", "chapter.finish()", "2", seconds=20.0)
    assert quickest(layout).stem == "02_b"


def note(test, phase, outcome="passed", seconds=1.0, **more):
    return {"test": test, "phase": phase, "outcome": outcome, "seconds": seconds, **more}


def test_what_had_passed_when_the_time_ran_out():
    notes = [
        note("a", "start", ""),
        note("a", "setup"),
        note("a", "call", seconds=3.0),
        note("a", "teardown"),
        note("b", "start", ""),
        note("b", "setup", "failed", error="no device"),
        note("b", "teardown"),
        note("c", "start", ""),
        note("c", "setup"),
    ]
    found = summary([*notes, {"peak": 12}, {"peak": 10}], "ran out of time")
    assert found == {
        "problem": "ran out of time in c",
        "passed": 1,
        "failed": 1,
        "skipped": 0,
        "seconds": 11.0,
        "peak_device_memory_mb": 12,
        "failures": [{"test": "b", "error": "no device"}],
        "slowest": [
            {"test": "a", "seconds": 6.0},
            {"test": "b", "seconds": 3.0},
            {"test": "c", "seconds": 2.0},
        ],
    }
