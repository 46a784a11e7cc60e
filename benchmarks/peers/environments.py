"""The peers' environments, each made once from a pinned file; one that cannot be made is reported."""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
HOME = Path(__file__).parent / ".envs"


@dataclass(frozen=True)
class Environment:
    """An environment, or why there is none.

    Attributes:
        name: of its requirements file.
        python: its interpreter; None where it could not be made.
        problem: the last line that pip said, where it could not.
    """

    name: str
    python: Path | None
    problem: str = ""


def make(
    name: str, home: Path = HOME, requirements: Path = REQUIREMENTS, limit: float = 1800.0
) -> Environment:
    """Makes an environment, or finds it made.

    It is complete where its mark holds the hash of the requirements; anything else is made anew, so a run
    that was killed between leaves nothing that looks finished.

    Args:
        name: of the requirements file.
        home: where environments lie.
        requirements: where the files lie.
        limit: seconds that the installation may take.
    """
    file, folder = requirements / f"{name}.txt", home / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = hashlib.sha256(file.read_bytes() + sys.version.encode()).hexdigest()
    mark = folder / "complete.json"
    if mark.is_file() and json.loads(mark.read_text("utf8")).get("requirements") == wanted:
        return Environment(name, python)
    print(f"making the environment {name}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Environment(name, None, f"not installed within {limit:,.0f} s")
    except (OSError, subprocess.CalledProcessError) as error:
        return Environment(name, None, f"no virtual environment: {error}")
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        return Environment(name, None, said[-1].strip() if said else f"pip ended with {done.returncode}")
    mark.write_text(json.dumps({"requirements": wanted}) + "\n", "utf8")
    return Environment(name, python)
