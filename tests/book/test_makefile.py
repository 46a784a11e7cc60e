"""What the commands of the Makefile do where something is amiss."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """The Makefile in a folder of its own, with this environment's ruff and a Python that only ends."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "ruff").symlink_to(Path(sys.executable).with_name("ruff"))
    (programs / "python").write_text("#!/bin/sh\nexit ${STATUS:-0}\n")
    (programs / "python").chmod(0o755)
    (tmp_path / ".venv" / ".complete").touch()
    return tmp_path


def make(folder, target):
    return subprocess.run(
        ["make", target], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("text", "tidy", "status"),
    [
        ('"""A module."""\n\nx = {  "a":1 }\n', '"""A module."""\n\nx = {"a": 1}\n', 0),
        # a fix that leaves lines to be formatted
        ('"""A module."""\nimport os\nx=1\n', '"""A module."""\n\nx = 1\n', 0),
        # nothing can be done about a name that is not there; the rest is formatted and fixed all the same
        ('"""A module."""\nimport os\nx=y\n', '"""A module."""\n\nx = y\n', 2),
    ],
)
def test_tidy_formats_whatever_cannot_be_fixed(checkout, text, tidy, status):
    file = checkout / "module.py"
    file.write_text(text)
    done = make(checkout, "tidy")
    assert file.read_text() == tidy
    assert done.returncode == status, done.stdout + done.stderr
    assert ("F821" in done.stdout) is bool(status)


def test_tidy_formats_what_stands_beside_a_file_that_is_no_python(checkout):
    (checkout / "broken.py").write_text("x = = 1\n")
    (checkout / "module.py").write_text('"""A module."""\nx=1\n')
    assert make(checkout, "tidy").returncode != 0
    assert (checkout / "module.py").read_text() == '"""A module."""\n\nx = 1\n'


@pytest.mark.parametrize(("status", "passes"), [(0, True), (3, True), (1, False)])
def test_a_machine_without_a_gpu_is_no_failure_of_its_check(checkout, monkeypatch, status, passes):
    monkeypatch.setenv("STATUS", str(status))
    done = make(checkout, "gpu-check")
    assert (done.returncode == 0) is passes
    assert bool(done.stderr) is not passes
