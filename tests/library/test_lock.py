"""The lock: exact pins for every Python that the book accepts, each with a wheel on the index."""

import json
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from book import lock
from book.lock import LOCK, PYTHONS, IndexUnreachableError, check, needed, pins

ONLY_ONE = (
    'a==1\nb==2 ; python_version == "3.12"\nc==3 ; python_version == "3.11" or python_version == "3.12"\n'
)


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0+cpu",
        "torch>=2",
        "x @ file:///tmp/x",
        "-e .",
        "x==1; python_version>'3'",
        'x==1 ; python_version >= "3.12"',
        'x==1 ; python_version == "3.12" or',
        "x==1 ; sys_platform == 'linux'",
    ],
)
def test_a_line_that_is_no_exact_pin_is_refused(line):
    with pytest.raises(ValueError, match="not an exact pin"):
        pins(f"# comment\n{line}\n")


@pytest.mark.parametrize(
    ("python", "names"), [(None, "abc"), ("3.11", "ac"), ("3.12", "abc"), ("3.13", "a"), ("3.1", "a")]
)
def test_a_marker_says_who_needs_a_pin(python, names):
    assert "".join(pins(ONLY_ONE, python)) == names


def test_what_is_needed_follows_markers_and_extras():
    requires = {
        "a": [
            "B_b>=2",
            'c; python_version == "3.12"',
            'd; extra == "more"',
            'e; python_full_version < "3.11.5"',
        ],
        "b-b": ["a[more]"],
        "c": ["nowhere"],
    }
    assert set(needed(requires, ["a"], "3.11")) == {"a", "b-b", "d", "e"}
    assert set(needed(requires, ["a"], "3.12")) == {"a", "b-b", "c", "d", "nowhere"}
    assert str(needed(requires, ["a"], "3.13")["b-b"].specifier) == ">=2"
    assert set(needed(requires, ["c"], "3.11")) == {"c", "nowhere"}


class Index:
    """Answers for pip: these versions have a wheel, and these are their requirements."""

    def __init__(self, wheels, requires=(), reachable=True):
        self.wheels, self.requires, self.reachable = set(wheels), dict(requires), reachable
        self.asked = []

    def __call__(self, *arguments):
        if not self.reachable or arguments == ("pip",):
            return subprocess.CompletedProcess(arguments, 0 if self.reachable else 1, "", "no route")
        listed = Path(arguments[arguments.index("-r") + 1]).read_text().split()
        self.asked.append((arguments[arguments.index("--python-version") + 1], listed))
        for line in listed:
            if line not in self.wheels:
                error = f"ERROR: No matching distribution found for {line}\n"
                return subprocess.CompletedProcess(arguments, 1, "", error)
        found = [dict(zip(("name", "version"), line.split("=="), strict=True)) for line in listed]
        found = [{"metadata": one | {"requires_dist": self.requires.get(one["name"], [])}} for one in found]
        Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps({"install": found}))
        return subprocess.CompletedProcess(arguments, 0, "", "")


@pytest.fixture
def project(monkeypatch):
    """A project that wants a, and nothing else; its lock is ONLY_ONE."""
    monkeypatch.setattr(lock, "wanted", lambda: ["a"])
    monkeypatch.setattr(lock, "ENCODER", "c==3")

    def use(*arguments, **options):
        index = Index(*arguments, **options)
        monkeypatch.setattr(lock, "_pip", index)
        return index

    return use


def test_a_lock_in_order_has_no_problems(project):
    index = project({"a==1", "b==2", "c==3"}, {"a": ['b>=2; python_version == "3.12"']})
    assert check("3.12", ONLY_ONE) == []
    assert check("3.11", ONLY_ONE) == []
    assert index.asked == [("3.12", ["a==1", "b==2", "c==3"]), ("3.11", ["a==1", "c==3"])]


def test_every_pin_without_a_wheel_is_named(project):
    project({"b==2", "nvidia-x==1"})
    assert check("3.12", ONLY_ONE) == [
        "Python 3.12: a==1 has no wheel",
        "Python 3.12: c==3 has no wheel",
    ]


def test_what_is_missing_or_of_another_version_is_named(project):
    project({"a==1", "b==2", "c==3"}, {"a": ["b>=3", "Other.Name>1", "nvidia-x"]})
    assert check("3.12", ONLY_ONE) == [
        "Python 3.12: b>=3 is needed, which the lock has 2",
        "Python 3.12: Other.Name>1 is needed, which the lock does not pin",
    ]


def test_an_index_that_does_not_answer_is_said_and_no_missing_wheel(project):
    project({"a==1"}, reachable=False)
    with pytest.raises(IndexUnreachableError, match="no package index"):
        check("3.12", ONLY_ONE)


def test_the_lock_has_what_each_python_needs_alone():
    text = LOCK.read_text("utf8")
    assert {name for name in pins(text) if name not in pins(text, "3.11")} >= {"aiohttp"}
    assert pins(text, "3.11") == pins(text, "3.13")
    assert all(set(pins(text, python)) <= set(pins(text)) for python in PYTHONS)
    assert all(Requirement(line).url is None for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_has_a_wheel(python):
    try:
        assert check(python) == []
    except IndexUnreachableError as error:
        pytest.skip(f"{error}: nothing can be said of the wheels")


@pytest.mark.slow
def test_a_pin_that_nobody_published_is_found():
    try:
        found = check("3.12", "iniconfig==0.0.0.1\n")
    except IndexUnreachableError as error:
        pytest.skip(f"{error}: nothing can be said of the wheels")
    assert found == ["Python 3.12: iniconfig==0.0.0.1 has no wheel"]
