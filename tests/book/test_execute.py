"""The runner, on small notebooks of its own: what it runs, what it keeps, and what an interruption leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book import execute
from book.dependencies import Package
from book.execute import ROOT, Layout, inputs, stale
from recsys_lib.chapter.runs import RecordedRun, code_hash

ALL = ["01_a.ipynb", "01_a.json", "02_b.ipynb", "02_b.json", "99_all.ipynb", "99_all.json"]
RECORD = """
import json, os, pathlib
facts = {"title": "", "dataset": "100k", "seed": 0, "device": "cpu", "hardware": "cpu: x", "seconds": 0.1}
facts |= {"peak_memory_mb": None, "versions": {"torch": "1"}, "results": [], "numbers": {}}
facts |= {"headline_numbers": {}, "claims": []}
record = {"chapter": %r, **facts} | %s
pathlib.Path(os.environ["RECSYS_RESULTS"], record["chapter"] + ".json").write_text(json.dumps(record))
"""


EXPORTS = '"""A library."""\n\nfrom recsys_lib.two import VALUE\n\n__all__ = ["VALUE"]\n'


def add(root, name, *cells, title="A title", record="{}", needs=None):
    """Write a small chapter that runs some cells and then records its results."""
    file = root / "notebooks" / f"{name}.ipynb"
    file.parent.mkdir(exist_ok=True)
    code = [new_code_cell(cell, id=f"cell-{number}") for number, cell in enumerate(cells)]
    end = [new_code_cell(RECORD % (name, record), id="record")] if record else []
    notebook = new_notebook(cells=[new_markdown_cell(f"# {title}", id="title"), *code, *end])
    notebook.metadata = {"kernelspec": {"name": "no-such-kernel", "display_name": "x", "language": "python"}}
    if needs:
        notebook.metadata["recsys_book"] = {"needs": needs}
    file.write_text(nbformat.writes(notebook))
    return file


def run(root, *options, check=None):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "book.execute", "--root", str(root), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def begin(root):
    """Begin a run without waiting for its end."""
    command = [sys.executable, "-m", "book.execute", "--root", str(root)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def started(done):
    """The notebooks that a run executed."""
    return re.findall(r"^  start    (\S+)$", done.stdout, re.MULTILINE)


def copy_of(root, name):
    return root / "_build" / "executed" / "notebooks" / f"{name}.ipynb"


def results_of(root, name):
    return root / "_build" / "results" / f"{name}.json"


def products(root):
    """Everything that looks like a finished product."""
    folders = [root / "_build" / "executed" / "notebooks", root / "_build" / "results"]
    return sorted(file.name for folder in folders if folder.exists() for file in folder.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A book of two chapters and one that reads their results, executed once."""
    root = tmp_path_factory.mktemp("book")
    library = root / "recsys_lib"
    library.mkdir()
    (library / "__init__.py").write_text(EXPORTS)
    (library / "one.py").write_text("VALUE = 1\n")
    (library / "two.py").write_text("VALUE = 2\n")
    (root / "requirements.lock").write_text("torch==2.13.0\n")
    add(root, "01_a", "from recsys_lib.one import VALUE\nprint('value', VALUE)", title="First")
    add(
        root,
        "02_b",
        "from recsys_lib import VALUE\nVALUE",
        title="Second",
        record="{'numbers': {'x': 0.25}, 'a_later_field': ['kept']}",
    )
    add(root, "99_all", "import os\nprint(sorted(os.listdir(os.environ['RECSYS_RESULTS'])))", needs=["*"])
    done = run(root, check=0)
    assert sorted(started(done)) == ["01_a", "02_b", "99_all"]
    return root


@pytest.fixture
def book(finished, tmp_path):
    """A copy of the finished book, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "book"))


def outputs(root, name):
    notebook = nbformat.read(copy_of(root, name), as_version=4)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_what_a_finished_run_leaves(finished):
    assert products(finished) == ALL
    assert "value 1" in outputs(finished, "01_a")
    assert "['01_a.json', '02_b.json']" in outputs(finished, "99_all")
    notebook = nbformat.read(copy_of(finished, "02_b"), as_version=4)
    nbformat.validate(notebook)
    made = notebook.metadata.recsys_book
    assert made.seconds > 0
    assert made.peak_memory_mb > 10
    assert (made.device, made.versions) == ("cpu", {"torch": "1"})
    assert set(made.inputs) == {
        "runner",
        "code",
        "text",
        "requirements.lock",
        "recsys_lib/__init__.py",
        "recsys_lib/two.py",
    }
    assert "papermill" not in notebook.metadata
    assert not any("papermill" in cell.metadata for cell in notebook.cells)
    assert str(finished) not in copy_of(finished, "02_b").read_text()
    record = json.loads(results_of(finished, "02_b").read_text())
    assert (record["title"], record["numbers"]) == ("Second", {"x": 0.25})
    assert record["a_later_field"] == ["kept"]
    assert not (finished / "_build" / "scratch").exists() or not list(
        (finished / "_build" / "scratch").iterdir()
    )


def test_a_second_run_does_nothing(book):
    before = {file: file.stat().st_mtime_ns for file in (book / "_build").rglob("*.[ij]*")}
    assert started(run(book, check=0)) == []
    assert {file: file.stat().st_mtime_ns for file in (book / "_build").rglob("*.[ij]*")} == before
    assert run(book, "--check", check=0).stdout == ""
    assert stale(book / "notebooks" / "01_a.ipynb") is None


def reasons(root):
    return {path.stem: reason for path in Layout(root).sources() if (reason := stale(path))}


def test_a_change_of_the_library_runs_what_depends_on_it(book):
    (book / "recsys_lib" / "two.py").write_text("VALUE = 22\n")
    assert reasons(book) == {"02_b": "recsys_lib/two.py changed"}
    assert "02_b: recsys_lib/two.py changed" in run(book, "--check", check=1).stdout
    done = run(book, check=0)
    # its results are the same as before, so whoever reads them need not run
    assert started(done) == ["02_b"]
    assert "22" in copy_of(book, "02_b").read_text()
    assert reasons(book) == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (EXPORTS.replace("\n__all__", "from recsys_lib.one import VALUE as ONE\n\n__all__"), set()),
        (EXPORTS.replace('["VALUE"]', '["ONE", "VALUE"]').replace("A library", "The library"), set()),
        (EXPORTS.replace("two", "one"), {"02_b"}),
        (f"{EXPORTS}VALUE = 2\n", {"01_a", "02_b"}),
    ],
)
def test_of_what_a_package_exports_only_the_names_used_count(book, text, names):
    (book / "recsys_lib" / "__init__.py").write_text(text)
    assert text != EXPORTS
    assert reasons(book).keys() == names
    assert all(reason.startswith("recsys_lib/__init__.py") for reason in reasons(book).values())


def test_a_change_of_results_runs_who_reads_them(book):
    add(book, "02_b", "pass", title="Second", record="{'numbers': {'x': 0.5}}")
    assert started(run(book, check=0)) == ["02_b", "99_all"]


def test_a_change_of_the_lock_runs_everything(book):
    (book / "requirements.lock").write_text("torch==2.14.0\n")
    assert set(reasons(book)) == {"01_a", "02_b", "99_all"}
    assert reasons(book)["01_a"] == "requirements.lock changed"


def test_a_change_of_prose_is_carried_over_without_a_run(book):
    source = book / "notebooks" / "01_a.ipynb"
    notebook = nbformat.read(source, as_version=4)
    notebook.cells.insert(1, new_markdown_cell("New words.", id="new"))
    source.write_text(nbformat.writes(notebook))
    before = nbformat.read(copy_of(book, "01_a"), as_version=4).metadata.recsys_book
    assert reasons(book) == {"01_a": "the notebook's text changed"}
    assert started(run(book, check=0)) == []
    assert reasons(book) == {}
    copy = nbformat.read(copy_of(book, "01_a"), as_version=4)
    assert copy.cells[1].source == "New words."
    assert "value 1" in outputs(book, "01_a")
    after = copy.metadata.recsys_book
    assert (after.date, after.seconds) == (before.date, before.seconds)


SAYS = """
from IPython.display import display
class chapter:
    def say(text): display({"text/markdown": text, "text/plain": text}, raw=True)
print("run anew")
"""


def test_new_words_around_the_same_values_need_no_run(book):
    def say(text):
        add(book, "01_a", SAYS, f"share = 1 / 8\nchapter.say(f{text!r})", title="First")
        done = run(book, "--only", "01_a", check=0)
        copy = nbformat.read(copy_of(book, "01_a"), as_version=4)
        return started(done), copy.cells[2].source, copy.cells[2].outputs[0].data["text/markdown"]

    assert say("It is {share:.3f}.")[::2] == (["01_a"], "It is 0.125.")
    source = "share = 1 / 8\nchapter.say(f'An eighth: {share:.3f}')"
    assert say("An eighth: {share:.3f}") == ([], source, "An eighth: 0.125")
    assert stale(book / "notebooks" / "01_a.ipynb") is None
    assert say("An eighth: {share:.1%}")[::2] == (["01_a"], "An eighth: 12.5%")
    assert say("{share:.1%} or {share}")[::2] == (["01_a"], "12.5% or 0.125")
    # words that a run would refuse are left to a run
    add(book, "01_a", SAYS, "share = 1 / 8\nchapter.say(f'{share:.1%} or {share}, {{x}}')", title="First")
    assert started(run(book, "--only", "01_a", check=0)) == ["01_a"]


def test_a_chapter_alone(book):
    assert started(run(book, "--only", "01_a", "--force", check=0)) == ["01_a"]
    done = run(book, "--only", "01", check=1)
    assert "there is no notebook '01'; there are 01_a, 02_b, 99_all" in done.stderr


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda root: copy_of(root, "01_a").unlink(), "not executed yet"),
        (lambda root: os.truncate(copy_of(root, "01_a"), 900), "its copy is damaged"),
        (lambda root: os.truncate(copy_of(root, "01_a"), 0), "its copy is damaged"),
        (lambda root: copy_of(root, "01_a").write_text("{}"), "its copy is damaged"),
        (
            lambda root: shutil.copy(root / "notebooks" / "01_a.ipynb", copy_of(root, "01_a")),
            "its copy is damaged",
        ),
        (lambda root: results_of(root, "01_a").unlink(), "its results are not those of its copy"),
        (lambda root: results_of(root, "01_a").write_text("{}"), "its results are not those of its copy"),
        (lambda root: os.truncate(results_of(root, "01_a"), 20), "its results are not those of its copy"),
        (lambda root: (root / "notebooks" / "01_a.ipynb").write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_noticed(book, damage, reason):
    damage(book)
    assert reason in reasons(book)["01_a"]


def test_the_longest_run_starts_first(book):
    """By the time it took; what was never run goes before, and of that what has more cells."""
    layout = Layout(book)
    for name, seconds in (("01_a", 5.0), ("02_b", 50.0), ("99_all", 0.5)):
        copy = nbformat.read(copy_of(book, name), as_version=4)
        copy.metadata.recsys_book.seconds = seconds
        copy_of(book, name).write_text(nbformat.writes(copy))
    add(book, "03_c", "1")
    add(book, "04_d", "1", "2", "3")
    todo = execute._to_run(layout.sources(), layout, Package(book), True, execute.Screen())
    assert [path.stem for path in todo] == ["04_d", "03_c", "02_b", "01_a", "99_all"]


@pytest.mark.parametrize("damage", ["", "[", "[1]", '[{"chapters_s": {"01_a": "long"}}]', "{}"])
def test_what_was_never_run_goes_by_the_history_of_the_book(tmp_path, damage):
    for name, cells in (("01_a", 1), ("02_b", 2), ("03_c", 3)):
        add(tmp_path, name, *["pass"] * cells)
    layout = Layout(tmp_path)
    entries = [{"chapters_s": {"01_a": 1.0, "02_b": 9.0}}, {"chapters_s": {"01_a": 90.0}}]
    layout.history.parent.mkdir()
    layout.history.write_text(damage or json.dumps(entries))
    package = Package(execute.ROOT)
    todo = execute._to_run(layout.sources(), layout, package, False, execute.Screen())
    known, unknown = ["03_c", "01_a", "02_b"], ["03_c", "02_b", "01_a"]
    assert [path.stem for path in todo] == (unknown if damage else known)


def test_damage_is_mended_by_the_next_run(book):
    os.truncate(copy_of(book, "01_a"), 900)
    results_of(book, "02_b").write_text("{}")
    assert sorted(started(run(book, check=0))) == ["01_a", "02_b"]
    assert reasons(book) == {}


def test_the_products_of_a_notebook_that_is_gone_are_removed(book):
    (book / "notebooks" / "02_b.ipynb").unlink()
    run(book, check=0)
    assert products(book) == ["01_a.ipynb", "01_a.json", "99_all.ipynb", "99_all.json"]
    assert "['01_a.json']" in outputs(book, "99_all")


def test_a_failing_cell_is_named_and_what_finished_is_kept(book):
    add(book, "01_a", "a = 1", "def f():\n    return 1 / 0\n\nf()")
    add(book, "02_b", "pass", title="Second")
    done = run(book, check=1)
    assert re.search(
        r"FAILED   01_a: cell 3 of 4, line 4: f\(\)\n    ZeroDivisionError: division by zero", done.stdout
    )
    assert "waiting  99_all: needs a chapter that failed" in done.stdout
    assert "2 not executed: 01_a, 99_all. Nothing is published." in done.stderr
    assert set(reasons(book)) == {"01_a", "99_all"}


@pytest.mark.parametrize(
    ("cells", "record", "message"),
    [
        (["x = = 1"], "{}", r"cell 2 of 3, line 1: x = = 1\n    SyntaxError"),
        (["import sys\nsys.exit(0)"], "{}", r"cell 2 .* ended in an error"),
        (
            ["import os\nos._exit(9)"],
            "{}",
            r"the kernel died in cell 2 of 3 \(import os\), having held \d+ MB",
        ),
        (["import time\ntime.sleep(60)"], "{}", r"cell 2 of 3 \(import time\) took more than 2 s"),
        (["pass"], "", "recorded no results; end it with chapter.finish"),
        (["pass"], "{'chapter': 'other'}", "recorded no results"),
        (["pass"], "{'numbers': {'x': float('nan')}}", "its results cannot be read: it holds NaN"),
        (
            ["pass"],
            "{'numbers': {'x': None}}",
            "its results cannot be read: numbers: 'x' is None, not a finite number",
        ),
    ],
)
def test_other_ways_to_fail(book, cells, record, message):
    add(book, "01_a", *cells, record=record)
    done = run(book, "--only", "01_a", "--timeout", "2", check=1)
    assert re.search(message, done.stdout), done.stdout
    assert "01_a" in reasons(book)


def test_the_surroundings_of_a_notebook(book):
    add(
        book,
        "01_a",
        "import os, sys, tqdm\nprint(os.listdir(), sys.executable)",
        "print([os.environ[name] for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')])",
        "import recsys_lib\nprint(recsys_lib.__file__)",
    )
    run(book, "--only", "01_a", check=0)
    shown = outputs(book, "01_a")
    assert f"[] {sys.executable}" in shown
    assert "['1', '1']" in shown
    assert str(book / "recsys_lib") in shown


def test_a_change_while_it_runs_is_noticed(book):
    path = book / "recsys_lib" / "one.py"
    add(book, "01_a", f"import recsys_lib.one\nopen({str(path)!r}, 'a').write('X = 1')")
    done = run(book, "--only", "01_a", check=1)
    assert "changed while it ran" in done.stdout
    assert "01_a" in reasons(book)


def test_a_folder_that_cannot_be_written_to_is_named(book):
    folder = book / "_build" / "executed"
    shutil.rmtree(folder)
    folder.write_text("in the way")
    done = run(book, "--only", "01_a", check=1)
    assert "Error" in done.stdout + done.stderr
    assert str(folder) in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    execute.write(file, "before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        execute.write(file, "after")
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert file.read_text() == "before"


def test_a_full_disk_between_results_and_copy_leaves_the_copy_stale(book, monkeypatch):
    add(book, "01_a", "pass", record="{'numbers': {'x': 1}}")
    write = execute.write

    def full(path, text):
        if path.suffix == ".ipynb":
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(execute, "write", full)
    assert execute.execute(Layout(book), only="01_a") == ["01_a"]
    assert json.loads(results_of(book, "01_a").read_text())["numbers"] == {"x": 1}
    monkeypatch.undo()
    assert "01_a" in reasons(book)
    # even with the notebook as it was before: the results are no longer those of the copy
    add(book, "01_a", "from recsys_lib.one import VALUE\nprint('value', VALUE)", title="First")
    assert reasons(book)["01_a"] == "its results are not those of its copy"


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def sleeping(book):
    """A run in which one chapter is done and another sleeps; yields its process and the kernel's."""
    add(
        book,
        "01_a",
        f"import os, time\nopen({str(book / 'pid')!r}, 'w').write(str(os.getpid()))",
        "time.sleep(300)",
    )
    add(book, "02_b", "pass", title="Second", record="{'numbers': {'x': 1}}")
    process = begin(book)
    wait_for(lambda: (book / "pid").exists() and (book / "pid").read_text() and "02_b" not in reasons(book))
    kernel = psutil.Process(int((book / "pid").read_text()))
    yield process, kernel
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_unfinished(book, sleeping, number):
    process, kernel = sleeping
    process.send_signal(number)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9}.get(number, 130), shown
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 20)
    assert set(reasons(book)) == {"01_a", "99_all"}  # the chapter that had finished is kept
    add(book, "01_a", "from recsys_lib.one import VALUE\nprint('value', VALUE)", title="First")
    assert started(run(book, check=0))[-1] == "99_all"
    assert reasons(book) == {}
    assert products(book) == ALL


def test_a_run_that_is_interrupted_at_its_start_ends(book):
    add(book, "01_a", "import time\ntime.sleep(300)")
    process = begin(book)
    while "start    01_a" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [p for p in psutil.Process().children(recursive=True) if "ipykernel" in " ".join(p.cmdline())]


def test_a_second_run_waits_for_the_first(book, sleeping):
    process, _ = sleeping
    second = begin(book)
    assert "another run is under way" in second.stdout.readline()
    add(book, "01_a", "pass", title="First")
    assert second.poll() is None
    process.kill()  # the lock goes with it
    shown, _ = second.communicate(timeout=120)
    assert second.returncode == 0, shown
    assert "start    01_a" in shown
    assert reasons(book) == {}


def recorded(book, name="speed", **changes):
    """Write a recorded run, of code that is a file of the small library."""
    made = {
        **{"about": "x", "date": "2026-01-31", "command": "make x", "device": "cpu", "versions": {}},
        **{"code": {"recsys_lib/one.py": code_hash("recsys_lib/one.py", book)}, "inputs": {}},
        **{"values": {"x": 1}, **changes},
    }
    RecordedRun(name=name, **made).write(book / "book" / "recorded" / f"{name}.json")


def test_a_change_of_a_recorded_run_makes_who_shows_it_stale(book):
    shows = "class chapter:\n    def recorded_run(name): pass\nchapter.recorded_run('speed')"
    source = add(book, "02_b", shows, title="Second")

    def named():
        found = inputs(source, Layout(book), Package(book))
        return {name: value for name, value in found.items() if name.startswith("book/")}

    assert named() == {"book/recorded/speed.json": "missing"}
    recorded(book)
    assert set(started(run(book, check=0))) == {"02_b", "99_all"}
    assert reasons(book) == {}
    recorded(book, "another")
    assert reasons(book) == {}
    recorded(book, values={"x": 2})
    assert reasons(book) == {"02_b": "book/recorded/speed.json changed"}
    # A change of the code behind a record is said on the page; a second one changes no word of it.
    before = named()
    (book / "recsys_lib" / "one.py").write_text("VALUE = 1  # the same\n\n")
    first = named()
    (book / "recsys_lib" / "one.py").write_text("VALUE = 3\n")
    assert first != before
    assert named() == first
    (book / "recsys_lib" / "one.py").write_text("# a comment\nVALUE = 1\n")
    assert named() == before


def test_who_does_not_write_out_the_name_of_a_recorded_run_depends_on_all(book):
    for name in ("speed", "another"):
        recorded(book, name)
    source = add(book, "02_b", "for name in ['speed']:\n    chapter.recorded_run(name)")
    assert {"book/recorded/speed.json", "book/recorded/another.json"} <= set(
        inputs(source, Layout(book), Package(book))
    )
    (book / "book" / "recorded" / "speed.json").write_text("no record")
    assert inputs(source, Layout(book), Package(book))["book/recorded/speed.json"] != "missing"


def test_inputs_name_every_cause(book):
    path = book / "notebooks" / "99_all.ipynb"
    results_of(book, "02_b").unlink()
    named = inputs(path, Layout(book), Package(book))
    assert set(named) == {"runner", "code", "text", "requirements.lock", "results of 01_a", "results of 02_b"}
    assert named["results of 02_b"] == "missing"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.9, "1:05"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert execute.clock(seconds) == text


# A chapter's file alone, in an empty folder, without the library.


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """An environment that has everything but the library, as a hosted notebook's has."""
    folder = tmp_path_factory.mktemp("hosted")
    venv.create(folder, with_pip=False)
    own = Path(
        subprocess.check_output(
            [folder / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])"], text=True
        ).strip()
    )
    # Packages found through a .pth file's folder are used as they are; that folder's own .pth files, and with
    # them an editable installation of the library, are not read.
    (own / "shared.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    source = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "recsys_lib", source / "recsys_lib")
    return folder / "bin" / "python", own, source


def quickest():
    """The scoreboard, and the chapter that was executed in the shortest time."""
    layout = Layout(ROOT)
    timed = []
    for path in layout.sources():
        copy = layout.executed / path.name
        if not execute.needs(execute.read_notebook(path)) and copy.exists():
            timed.append((execute.read_notebook(copy)["metadata"]["recsys_book"]["seconds"], path.stem))
    return ["99_scoreboard", *[name for _, name in sorted(timed)[:1]]]


@pytest.mark.slow
@pytest.mark.parametrize("name", quickest())
def test_a_lone_file_installs_the_library_and_runs(hosted, tmp_path, name):
    python, site, source = hosted
    shutil.rmtree(site / "recsys_lib", ignore_errors=True)
    shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path)
    environment = {
        key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "RECSYS_RESULTS"}
    }
    environment |= {"RECSYS_LIB": str(source), **execute.KERNEL_ENVIRONMENT}
    look = [python, "-c", "import importlib.util; print(importlib.util.find_spec('recsys_lib'))"]
    assert subprocess.check_output(look, env=environment, cwd=tmp_path, text=True) == "None\n"
    command = [python, "-m", "papermill", f"{name}.ipynb", "out.ipynb", "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (site / "recsys_lib" / "__init__.py").exists()
    assert (tmp_path / "results" / f"{name}.json").exists()
    if name == "99_scoreboard":
        assert "No chapter has recorded a result" in (tmp_path / "out.ipynb").read_text()


def test_a_chapter_saves_its_pipeline_where_the_service_looks_for_it(tmp_path):
    place = "import os\nfrom pathlib import Path\nplace = Path(os.environ['RECSYS_PIPELINE'])\n"
    add(tmp_path, "01_a", place + "place.mkdir(parents=True); (place / 'config.json').write_text('{}')")
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\n")
    run(tmp_path, check=0)
    makefile = (ROOT / "Makefile").read_text()
    served = re.search(r"^PIPELINE \?= (.+)$", makefile, flags=re.MULTILINE)[1]
    assert (tmp_path / served / "config.json").is_file()
