"""Recorded runs: what is written, what is refused, and what a page says of one."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recsys_lib.chapter import Chapter
from recsys_lib.chapter.runs import RecordedRun, RecordedRunError, code_hash, show_run, write_run

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "book" / "recorded").glob("*.json"))
SCRIPT = '''"""A script."""

SIZE = 3


def measure(n):
    """Measures."""
    # of a machine
    return n * SIZE


class Index:
    """An index."""

    def search(self):
        return 1


def table():
    return "a table"
'''
VALUES = {
    "ndcg": {"mean": 0.3, "low": 0.25, "high": 0.35},
    "rows": [{"n": 1, "of": "bare", "seconds": 0.5}],
    "missing": None,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one script."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text(SCRIPT)
    return tmp_path


def write(root: Path, **changes: Any) -> RecordedRun:
    """Records a run of that script."""
    path = root / "book" / "recorded" / "speed.json"
    return write_run(
        path,
        **{
            "about": "Speed.\n",
            "command": "python benchmarks/speed.py",
            "device": "cpu: a CPU, 1 thread",
            "versions": ["pytest"],
            "code": ["benchmarks/speed.py::measure", "benchmarks/speed.py::SIZE"],
            "inputs": {"ratings": "0123456789abcdef"},
            "values": VALUES,
            "settings": {"rounds": 3},
            "root": root,
            **changes,
        },
    )


def edit(root: Path, before: str, after: str) -> None:
    path = root / "benchmarks" / "speed.py"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


# ---------------------------------------------------------------------- writing and reading


def test_what_is_written_is_read_again(root: Path) -> None:
    made = write(root)
    path = root / "book" / "recorded" / "speed.json"
    run = RecordedRun.read(path)
    assert run == made
    assert run.values == VALUES
    assert run.about == "Speed."
    assert datetime.date.fromisoformat(run.date)
    assert set(run.versions) == {"python", "pytest"}
    assert run.changed(root) == []
    assert [entry.name for entry in path.parent.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"x": float("nan")}}, r"values\.x is nan"),
        ({"values": {"rows": [{"x": float("inf")}]}}, r"values\.rows\[0\]\.x is inf"),
        ({"values": {"x": {"mean": 0.5, "low": 0.6, "high": 0.7}}}, r"values\.x lies outside its interval"),
        ({"values": {"x": {"low": 0.6, "high": 0.5}}}, r"values\.x lies outside its interval"),
        ({"values": {"x": object()}}, r"values\.x is a object"),
        ({"values": {1: 2}}, "has the name 1, which is no text"),
        ({"values": {}}, "nothing was measured"),
        ({"settings": {"x": float("nan")}}, r"settings\.x is nan"),
        ({"command": " "}, "'command' is ' ', not a text"),
        ({"device": ""}, "'device' is '', not a text"),
        ({"inputs": {"ratings": "of MovieLens"}}, "'inputs' holds what is no hash"),
        ({"code": ["benchmarks/speed.py::gone"]}, r"there is no code 'benchmarks/speed\.py::gone'"),
        ({"code": ["benchmarks/gone.py"]}, r"there is no code 'benchmarks/gone\.py'"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_nothing_is_written(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecordedRunError, match=message):
        write(root, **changes)
    assert not (root / "book" / "recorded" / "speed.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.pop("device"), "it has no device"),
        (lambda run: run.update(extra=1), "it has extra, which is not of the schema"),
        (lambda run: run.update(date="yesterday"), "not a day"),
        (lambda run: run.update(name="another"), "'name' is 'another', not that of the file"),
        (lambda run: run.update(values=[]), "not an object"),
        (lambda run: run.update(versions=None), "'versions' is None"),
        (lambda run: run["values"].update(x=float("nan")), "NaN, which is not finite"),
    ],
)
def test_a_file_that_is_no_recorded_run_is_named(root: Path, change: Any, message: str) -> None:
    write(root)
    path = root / "book" / "recorded" / "speed.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RecordedRunError, match=message) as caught:
        RecordedRun.read(path)
    assert str(path) in str(caught.value)
    path.write_text("{")
    with pytest.raises(RecordedRunError, match="Expecting"):
        RecordedRun.read(path)


# ---------------------------------------------------------------------- the hash of code


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("n * SIZE", "n + SIZE", ["measure"]),
        ("SIZE = 3", "SIZE = 4", ["SIZE"]),
        ('"""Measures."""', '"""Says\n\n    more.\n    """', []),
        ("# of a machine", "# of any machine\n", []),
        ("a table", "another table", []),
        ('"""A script."""', '"""A script."""\n\nimport os', []),
        ("def measure(n)", "def measured(n)", ["measure"]),
        ("def measure(n)", "@cache\ndef measure(n)", ["measure"]),
    ],
)
def test_only_what_the_values_depend_on_makes_a_record_old(
    root: Path, before: str, after: str, changed: list[str]
) -> None:
    run = write(root)
    edit(root, before, after)
    assert run.changed(root) == [f"benchmarks/speed.py::{name}" for name in changed]


def test_hashes_of_code(root: Path) -> None:
    parts = ["", "::measure", "::SIZE", "::Index", "::table"]
    hashes = [code_hash(f"benchmarks/speed.py{part}", root) for part in parts]
    assert len({*hashes, None}) == 6
    assert code_hash("benchmarks/speed.py::n", root) is None
    assert code_hash("benchmarks", root) is None
    (root / "data.csv").write_text("# 1\n")
    first = code_hash("data.csv", root)
    (root / "data.csv").write_text("# 2\n")
    assert code_hash("data.csv", root) != first
    edit(root, "SIZE = 3", "SIZE = (")  # no longer Python
    assert code_hash("benchmarks/speed.py::measure", root) is None
    assert code_hash("benchmarks/speed.py", root) not in hashes


# ---------------------------------------------------------------------- what a chapter shows


@pytest.fixture
def chapter(tmp_path: Path) -> Chapter:
    return Chapter("01_a", dataset="100k", seed=0, device="cpu", results=tmp_path / "results")


def test_a_chapter_shows_a_run_with_its_label(
    root: Path, chapter: Chapter, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(root)
    values = chapter.recorded_run("speed", folder=root / "book" / "recorded")
    assert values == VALUES
    said = capsys.readouterr().out
    assert said.startswith(f"*Recorded run*: {run.date}, cpu: a CPU, 1 thread, python 3.")
    assert "`python benchmarks/speed.py` makes it again." in said
    assert "older" not in said
    assert "not known" not in said


def test_a_stale_record_is_told(root: Path, chapter: Chapter, capsys: pytest.CaptureFixture[str]) -> None:
    write(root)
    edit(root, "n * SIZE", "n + SIZE")
    same = {"ratings": "0123456789abcdef", "items": "0" * 16}
    folder = root / "book" / "recorded"
    assert chapter.recorded_run("speed", inputs=same, folder=folder) == VALUES
    said = capsys.readouterr().out
    assert "**It is older than the code:** `benchmarks/speed.py::measure` changed since." in said
    assert "other inputs" not in said
    chapter.recorded_run("speed", inputs={"ratings": "f" * 16}, folder=folder)
    assert "**It was made from other inputs than those here:** `ratings`." in capsys.readouterr().out
    (root / "benchmarks" / "speed.py").unlink()
    chapter.recorded_run("speed", folder=folder)
    told = "`benchmarks/speed.py::measure` and `benchmarks/speed.py::SIZE` changed since"
    assert told in capsys.readouterr().out


def test_what_is_not_known_of_an_old_record_is_said(root: Path) -> None:
    made = write(root)
    path = root / "book" / "recorded" / "speed.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "code": None}))
    run = RecordedRun.read(path)
    assert run.changed(root) == []
    assert run.label(root) == f"{made.label(root)} From which code it was made is not known."
    path.write_text(json.dumps({**content, "code": None, "inputs": None}))
    label = RecordedRun.read(path).label(root, {"ratings": "f" * 16})
    assert label.endswith("From which code and which inputs it was made is not known.")


def test_a_missing_record_is_told(root: Path, chapter: Chapter, capsys: pytest.CaptureFixture[str]) -> None:
    assert chapter.recorded_run("gone", folder=root / "book" / "recorded") is None
    said = capsys.readouterr().out
    assert "**The recorded run `gone` is not here**" in said
    assert "`book/recorded/gone.json`" in said


@pytest.mark.parametrize("when", [True, lambda: True])
def test_a_run_is_live_where_the_means_are_there(
    root: Path, chapter: Chapter, capsys: pytest.CaptureFixture[str], when: Any
) -> None:
    write(root)
    folder = root / "book" / "recorded"
    live = {"ndcg": {"mean": 0.4, "low": 0.3, "high": 0.5}}
    assert chapter.recorded_run("speed", lambda: live, when=when, folder=folder) == live
    said = capsys.readouterr().out
    assert said.startswith("*Run live*: cpu: ")
    assert "torch" in said
    assert "Recorded" not in said
    with pytest.raises(RecordedRunError, match=r"speed\.x is nan"):
        chapter.recorded_run("speed", lambda: {"x": float("nan")}, when=when, folder=folder)
    with pytest.raises(RecordedRunError, match="not an object of values"):
        chapter.recorded_run("speed", lambda: [], when=when, folder=folder)
    with pytest.raises(ValueError, match="give the function that runs it live"):
        chapter.recorded_run("speed", when=when, folder=folder)


@pytest.mark.parametrize("when", [False, lambda: False])
def test_a_run_is_not_live_elsewhere(root: Path, when: Any) -> None:
    def live() -> dict[str, Any]:
        raise AssertionError("run without its means")

    write(root)
    assert show_run("speed", live, when=when, folder=root / "book" / "recorded")[0] == VALUES


# ---------------------------------------------------------------------- the committed ones


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_record_is_whole(path: Path) -> None:
    run = RecordedRun.read(path)
    assert len(path.read_bytes()) < 300_000  # the peers' holds every trial of every library's tuning
    command = run.command
    if command.startswith("make "):  # the target's recipe is what is run
        target = re.escape(command.removeprefix("make "))
        recipe = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert recipe is not None
        command = recipe[1]
    else:
        words = command.split()
        if "-m" in words:
            script = words[words.index("-m") + 1].replace(".", "/") + ".py"
        else:
            script = next(word for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file()
    assert f"--record book/recorded/{path.name}" in command
    assert run.date <= datetime.datetime.now(datetime.UTC).date().isoformat()
    assert show_run(path.stem)[0] == run.values


def test_reading_one_needs_no_torch() -> None:
    source = "import sys\nfrom recsys_lib.chapter.runs import RecordedRun\nassert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_run_that_names_no_device_was_made_on_this_processor(tmp_path):
    made = write_run(
        tmp_path / "small.json", about="x", command="x", versions=(), code=(), inputs={}, values={"n": 1}
    )
    assert RecordedRun.read(tmp_path / "small.json").device == made.device
    assert made.device.startswith("cpu: ")
    assert "cores" in made.device
