"""The package is light to import, and its dependencies are stated once and the same everywhere."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from book.lock import LOCK, PYTHONS, normalized, of_a_gpu_build, pins, wanted

ROOT = Path(__file__).resolve().parents[2]
CONDA_NAMES = {"pytorch": "torch"}
HEAVY = {"torch", "numpy", "pandas", "transformers", "datasets", "matplotlib", "scipy", "sklearn"}


def bounds(requirements: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(requirement) for requirement in requirements]
    return {normalized(requirement.name): requirement.specifier for requirement in parsed}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a statement brings into a fresh interpreter."""
    code = (
        f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_package_itself_imports_nothing_heavy():
    assert not HEAVY & loaded_by("import recsys_lib")


@pytest.mark.parametrize(
    "statement",
    [
        "import recsys_lib.chapter.results",
        "from recsys_lib.chapter import Chapter, recorded; recorded('nowhere')",
        "import book.accept, book.execute",
    ],
)
def test_results_are_read_without_anything_heavy(statement):
    """The book's tools read them, too, and would otherwise load torch to draw a table."""
    assert not HEAVY & loaded_by(statement)


def test_no_module_imports_what_few_chapters_need():
    every = """
import importlib, pkgutil, recsys_lib
for module in pkgutil.walk_packages(recsys_lib.__path__, "recsys_lib."):
    importlib.import_module(module.name)
"""
    lazy = {
        "transformers",
        "datasets",
        "matplotlib",
        "sentence_transformers",
        "IPython",
        "myst_nb",
        "sklearn",
        "faiss",
    }
    assert not lazy & loaded_by(every)


def test_environment_yml_is_pyproject_toml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (by_pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert by_pip[-1] == "-e ."
    stated = bounds([*conda, *by_pip[:-1]])
    stated = {CONDA_NAMES.get(name, name): specifier for name, specifier in stated.items()}
    assert accepted(stated.pop("python")) == [*PYTHONS]
    assert stated.pop("pip") == SpecifierSet()
    assert stated == bounds(wanted())


def accepted(specifier):
    """The minor versions of Python 3 that a specifier lets in, first release and later ones alike."""
    let_in = [f"3.{minor}" for minor in range(8, 20) if specifier.contains(f"3.{minor}.0")]
    assert let_in == [f"3.{minor}" for minor in range(8, 20) if specifier.contains(f"3.{minor}.9")]
    return let_in


def test_the_versions_of_python_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    stated = [text.rpartition(" ")[2] for text in project["project"]["classifiers"]]
    assert [text for text in stated if "." in text] == [*PYTHONS]
    # a hosted notebook may have a newer one than the book is built with; the library does not refuse it
    assert accepted(SpecifierSet(project["project"]["requires-python"]))[0] == PYTHONS[0]
    assert project["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert project["tool"]["ruff"]["target-version"] == f"py{PYTHONS[0].replace('.', '')}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())["jobs"]
    assert workflow["versions"]["strategy"]["matrix"]["python"] == [*PYTHONS]
    (book,) = [
        step["with"] for step in workflow["build"]["steps"] if "python-version" in step.get("with", {})
    ]
    assert book["python-version"] == PYTHONS[0]
    *others, last = PYTHONS
    for page in ("README.md", "book/how_to_run.md"):
        assert f"You need Python {', '.join(others)} or {last}" in (ROOT / page).read_text()


def test_the_lock_satisfies_pyproject_toml():
    locked = pins(LOCK.read_text())
    for name, specifier in bounds(wanted()).items():
        assert name in locked, f"{name} is not in requirements.lock; run `make lock`"
        assert specifier.contains(locked[name], prereleases=True), f"{name} {locked[name]} is not {specifier}"


def test_the_lock_is_complete_and_agrees_with_itself():
    locked = pins(LOCK.read_text(), f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in locked:
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            other = normalized(needed.name)
            # a build of torch for GPUs needs packages of its own, which the lock leaves to pip
            if of_a_gpu_build(other) or other == "setuptools":
                continue
            assert other in locked, (
                f"{name} needs {other}, which is not in requirements.lock; run `make lock`"
            )
            assert needed.specifier.contains(locked[other], prereleases=True), f"{name} needs {text}"


def test_nothing_keeps_a_hosted_notebook_from_its_own_torch_and_numpy():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, specifier in bounds(project["dependencies"]).items():
        assert {one.operator for one in specifier} <= {">="}, f"{name} has more than a lower bound"


def test_the_hooks_run_the_same_checks_as_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    checks = [re.sub(r" \.$", "", line.strip().removeprefix("$(BIN)/")) for line in recipe[1].splitlines()]
    assert len(checks) >= 5
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in config["repos"][0]["hooks"]]
    for check in checks:
        tool = check.removesuffix(" --check")  # a hook may mend what the target only reports
        assert any(entry.startswith(tool) for entry in entries), f"{check} is no hook"
