"""What the commands of the Makefile do where something is amiss."""

import os
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


# ---- which Python ----


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A checkout on a machine that has the Pythons which a test gives it, and no others."""
    folder, programs = tmp_path / "checkout", tmp_path / "bin"
    (folder / ".ci").mkdir(parents=True)
    programs.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", ".ci/run"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("bash", "sh", "cat", "chmod", "cp", "dirname", "id", "mkdir", "rm", "touch"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "chromium").symlink_to(shutil.which("cat"))
    made = shutil.which("make")
    monkeypatch.setenv("PATH", str(programs))
    for name in ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)

    class Machine:
        log = tmp_path / "log"
        make = made

        def python(self, name, version, *, venv=True, folder=programs):
            """A Python that makes an environment of itself, or says that it cannot."""
            fake = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0, 'final', 0); "
            fake += "" if venv else "sys.modules['ensurepip'] = None; "
            path = folder / name
            path.write_text(
                f"""#!/bin/sh
case "$1$2" in
  -c*) exec {sys.executable} -c "{fake}exec(sys.argv[1])" "$2";;
  --version) echo "Python {version}";;
  -mvenv) echo "{name} $*" >> {self.log}; {"" if venv else "exit 1;"} mkdir -p .venv/bin
    cp "$0" .venv/bin/python; cp "$0" .venv/bin/pip;;
esac
"""
            )
            path.chmod(0o755)
            return path

        def stub(self, name, then=""):
            """A program that writes down how it was called."""
            (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{then}\n')
            (programs / name).chmod(0o755)

        def called(self):
            return self.log.read_text().splitlines() if self.log.exists() else []

        def env(self, *words):
            return self._run(made, "env", *words)

        def ci(self):
            return self._run("bash", ".ci/run")

        def _run(self, *command):
            run = {"cwd": folder, "capture_output": True, "text": True, "check": False, "timeout": 120}
            return subprocess.run(command, env=dict(os.environ), **run)

    machine = Machine()
    machine.folder = folder
    return machine


@pytest.mark.parametrize(
    ("here", "taken"),
    [
        ({"python3.11": "3.11", "python3.12": "3.12", "python3": "3.13"}, "python3.11"),
        ({"python3.13": "3.13", "python3.12": "3.12", "python3": "3.11"}, "python3.12"),
        ({"python3.13": "3.13", "python3": "3.14"}, "python3.13"),
        ({"python3.14": "3.14", "python3": "3.12"}, "python3"),
        ({"python3": "3.14", "python": "3.11"}, "python"),
    ],
)
def test_the_first_python_in_range_makes_the_environment(machine, here, taken):
    for name, version in here.items():
        machine.python(name, version)
    done = machine.env()
    assert done.returncode == 0, done.stderr
    assert machine.called() == [f"{taken} -m venv --clear .venv"]


def test_without_a_python_in_range_it_says_which_it_wants(machine):
    machine.python("python3", "3.10")
    machine.python("python3.14", "3.14")
    done = machine.env()
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 was not found" in done.stderr
    assert machine.called() == []


def test_a_named_python_is_taken_if_it_is_in_range(machine, tmp_path):
    (tmp_path / "my own").mkdir()
    machine.python("python3.11", "3.11")
    mine = machine.python("mine", "3.13", folder=tmp_path / "my own")
    old = machine.python("old", "3.10")
    assert machine.env(f"PYTHON={mine}").returncode == 0
    assert machine.called() == ["mine -m venv --clear .venv"]
    for wrong, version in ((old, "Python 3.10"), ("nowhere", "not found")):
        shutil.rmtree(machine.folder / ".venv", ignore_errors=True)
        done = machine.env(f"PYTHON={wrong}")
        assert done.returncode != 0
        assert f"{wrong} is not Python 3.11, 3.12 or 3.13" in done.stderr
        assert version in done.stderr
    assert len(machine.called()) == 1


def test_an_environment_of_another_python_is_made_anew(machine):
    machine.python("python3", "3.10")
    (machine.folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "pip"):
        machine.python(name, "3.10", folder=machine.folder / ".venv" / "bin")
    machine.python("python3.12", "3.12")
    assert machine.env().returncode == 0
    assert machine.called() == ["python3.12 -m venv --clear .venv"]


def test_a_python_without_venv_is_told_how_to_get_it(machine):
    machine.python("python3.12", "3.12", venv=False)
    done = machine.env()
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


# ---- continuous integration ----


def test_ci_takes_a_python_that_can_make_an_environment(machine):
    machine.python("python3.11", "3.11", venv=False)
    machine.python("python3.13", "3.13")
    machine.stub("make")
    machine.stub("apt-get")
    done = machine.ci()
    assert done.returncode == 0, done.stderr
    assert machine.called() == ["make test PYTHON=python3.13"]


def test_ci_installs_python_only_where_none_is_in_range(machine, tmp_path):
    machine.python("python3", "3.10")
    machine.python("fresh", "3.11")
    machine.stub("make")
    machine.stub("sudo", 'shift; exec "$@"')
    bin_folder = tmp_path / "bin"
    machine.stub("apt-get", f"cp {bin_folder}/fresh {bin_folder}/python3.11")
    done = machine.ci()
    assert done.returncode == 0, done.stderr
    installed, made = [line for line in machine.called() if "install" in line or line.startswith("make")]
    assert installed.endswith("python3.11 python3.11-venv")
    assert made == "make test PYTHON=python3.11"


def test_ci_says_so_where_nothing_can_be_installed(machine):
    machine.python("python3", "3.10")
    machine.stub("make")
    done = machine.ci()
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 with its venv module is not here" in done.stderr
    assert machine.called() == []
