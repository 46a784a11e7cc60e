"""What a benchmark says of how it is run is what runs it, in an environment as ``make env`` leaves it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def imported(script: Path) -> set[str]:
    """The packages that a script imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text("utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_that_needs_the_checkout_is_run_as_a_module_of_it(script: Path) -> None:
    """The library alone is installed: a script finds it anywhere, and its neighbors only from the root."""
    by_file, by_module = f"python benchmarks/{script.name}", f"python -m benchmarks.{script.stem}"
    text = script.read_text("utf8")
    right, wrong = by_file, by_module
    if imported(script) & {"benchmarks", "book", "tests"}:
        right, wrong = by_module, by_file
    assert right in text
    assert wrong not in text


@pytest.mark.parametrize("name", ["growth", "index_in_pieces"])
def test_a_module_is_found_from_the_root_alone(name: str) -> None:
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--record" in done.stdout
