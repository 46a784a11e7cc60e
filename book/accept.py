"""Hold the chapters' headline results against accepted bands, so that a silent loss of quality fails.

``book/accepted.json`` holds, for each headline result of each chapter, the accepted value and the relative
width of the band around it. ``python -m book.accept`` takes the present results as the accepted ones; a
person reads the difference before it is committed. ``--check`` changes nothing and names what is out of band.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from book.execute import ROOT, Layout, stale, write
from recsys_lib.chapter.results import ChapterResults, ResultsError, read_all

ACCEPTED = ROOT / "book" / "accepted.json"
# Wide enough for another version's random numbers, or another order of summation; a zero never passes.
BAND, DETERMINISTIC_BAND, WIDEST_BAND = 0.1, 0.02, 0.5

Bands = dict[str, dict[str, dict[str, float]]]
ADVICE = "if this is meant, run `make accept` and read the difference"


def problems(accepted: Bands, results: Mapping[str, ChapterResults]) -> list[str]:
    """Every difference between what is accepted and what was measured that needs a person.

    Args:
        accepted: the bands, by chapter and name.
        results: what the chapters recorded, by chapter.
    """
    found = [f"{chapter}: has accepted results but recorded none" for chapter in accepted.keys() - results]
    for chapter, record in results.items():
        bands, measured = accepted.get(chapter, {}), record.headlines
        found += [f"{chapter}: the headline result {name!r} is missing" for name in bands.keys() - measured]
        for name, (value, _) in measured.items():
            if name not in bands:
                found.append(f"{chapter}: {name!r} is a new headline result ({value:.4g})")
                continue
            center, width = bands[name]["value"], bands[name]["rel"]
            if not center or not 0 < width <= WIDEST_BAND:
                found.append(
                    f"{chapter}: the band of {name!r} must be within {WIDEST_BAND:.0%} of a value not zero"
                )
            elif not abs(value - center) <= width * abs(center):
                off = (value - center) / abs(center)
                found.append(f"{chapter}: {name!r} is {value:.4g}, {off:+.1%} off {center:.4g} ± {width:.0%}")
    return sorted(found)


def renew(accepted: Bands, results: Mapping[str, ChapterResults]) -> Bands:
    """Bands around the present results; a width that a person has chosen is kept.

    Raises:
        ValueError: a headline result is zero, about which there is no relative band.
    """
    bands: Bands = {}
    for chapter, record in sorted(results.items()):
        for name, (value, deterministic) in sorted(record.headlines.items()):
            rounded = float(f"{value:.4g}")
            if not rounded or not math.isfinite(rounded):
                raise ValueError(f"{chapter}: the headline result {name!r} is {value}; it cannot be accepted")
            default = DETERMINISTIC_BAND if deterministic else BAND
            width = accepted.get(chapter, {}).get(name, {}).get("rel", default)
            bands.setdefault(chapter, {})[name] = {"value": rounded, "rel": width}
    return bands


def layout_of(bands: Bands) -> str:
    """The text of the file: a line for each result, so that a difference reads like a table."""
    chapters = []
    for chapter, named in bands.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(band)}" for name, band in named.items())
        chapters.append(f" {json.dumps(chapter)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(chapters) + "\n}\n"


def read_accepted(path: Path = ACCEPTED) -> Bands:
    """The accepted bands; none if there is no such file."""
    bands: Bands = json.loads(path.read_text("utf8")) if path.exists() else {}
    return bands


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m book.accept", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 and name what is out of band"
    )
    options = parser.parse_args(arguments)
    layout = Layout(ROOT)
    waiting = [path.stem for path in layout.sources() if stale(path)]
    if waiting:
        print(f"run `make execute` first; these are not up to date: {', '.join(waiting)}", file=sys.stderr)
        return 1
    accepted = read_accepted()
    try:
        results = read_all(layout.results)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        found = problems(accepted, results)
        print("\n".join([*found, ADVICE] if found else ["every headline result is in its band"]))
        return 1 if found else 0
    try:
        bands = renew(accepted, results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    write(ACCEPTED, layout_of(bands))
    print(f"accepted {sum(map(len, bands.values()))} results of {len(bands)} chapters; read the difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
