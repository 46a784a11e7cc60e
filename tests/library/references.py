"""Measure the reference values of the conformance suite anew; ``make references`` runs it.

Runs the test on MovieLens for every model and writes what it measured to ``references.json``. A person reads
the difference before it is committed.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).parent
REFERENCES = HERE / "references.json"


def measured(report: Path) -> dict[str, float]:
    """The multiple of popularity that each case recorded in a report of the tests."""
    found = {}
    for case in ET.parse(report).iter("testcase"):  # written by pytest a moment ago
        for entry in case.iter("property"):
            if entry.get("name") == "multiple":
                found[str(case.get("name")).partition("[")[2].rstrip("]")] = float(
                    entry.get("value") or "nan"
                )
    return found


def main() -> int:
    """Run the command; returns the exit code."""
    suite = HERE / "test_models_conformance.py"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-k", "test_movielens", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        subprocess.run([sys.executable, "-m", "pytest", *options, str(suite)], stdout=subprocess.DEVNULL)
        found = measured(report) if report.exists() else {}
    if not found:
        print("nothing was measured: run the suite and read its errors", file=sys.stderr)
        return 1
    known = json.loads(REFERENCES.read_text())
    for name in sorted(known.keys() | found.keys()):
        old, new = known.get(name), found.get(name)
        print(f"{name}: {old} -> {new}" if old != new else f"{name}: {old}")
    REFERENCES.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    print(f"{REFERENCES.name}: {len(found)} values; read the difference before committing it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
