"""What a chapter's run leaves in ``<results>/<name>.json``: the one schema for all who read or write it.

`Chapter` writes such a file, the runner adds the notebook's title, and the accepted bands, the pages and the
scoreboard read it. Only the standard library is needed, so that reading costs no import of torch.

What is read is checked as strictly as what is written: every field is there and of its kind, every number is
finite, every name stands for one value. A field that is not known here, as a later version may write it, is
neither interpreted nor lost: it is kept in ``more``, and written back as it was.
"""

import json
import os
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from recsys_lib.files import write_whole

__all__ = [
    "VERDICTS",
    "ChapterResults",
    "Claim",
    "Headline",
    "Result",
    "ResultsError",
    "read_all",
    "recorded",
    "results_dir",
]

VERDICTS = ("holds", "fails", "depends")
_ROUNDED = 1e-5  # values per user are written with six decimals


class ResultsError(ValueError):
    """Results are not what the schema says; the message names the part, and the file where one was read."""


class Headline(NamedTuple):
    """A value that is held against an accepted band."""

    value: float
    deterministic: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """One metric of one model.

    Attributes:
        name: unique in the chapter.
        value: what was measured.
        low: the lower end of the 95 % interval, or None where there is no interval.
        high: its upper end.
        n: the number of users, or of whatever was averaged over.
        metric: such as ``"ndcg@10"``.
        model: the model's name on the scoreboard.
        family: what kind of model it is.
        seed: the seed or seeds behind the value.
        fit_seconds: what fitting took, or None.
        headline: held against an accepted band.
        scoreboard: a row of the scoreboard.
        deterministic: no random number was drawn.
        per_user: the values that ``value`` is the mean of, in the order of the users, for paired comparisons
            with other chapters' models; None where nothing compares it, and in files that older code wrote.
        over: the same for two results whose values are of the same users, items to find and candidates; None
            where ``per_user`` is.
        more: fields that are not known here.

    Raises:
        ResultsError: a field is not of its kind, or values per user are not those of the mean.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    metric: str
    model: str
    family: str
    seed: int | list[int]
    fit_seconds: float | None
    headline: bool
    scoreboard: bool
    deterministic: bool
    per_user: Sequence[float] | None = None
    over: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"result {_short(self.name)}: "
        _check(self, ("name", "metric", "model", "family"), _is_word, "a text that is not empty", where)
        _check(self, ("value",), _is_number, "a finite number", where)
        _check(self, ("low", "high", "fit_seconds"), _or_null(_is_number), "a finite number or null", where)
        _check(self, ("n",), _is_whole, "a whole number", where)
        _check(self, ("seed",), _is_seed, "a whole number or a list of them", where)
        _check(self, ("headline", "scoreboard", "deterministic"), _is_flag, "true or false", where)
        if (self.low is None) != (self.high is None):
            raise ResultsError(f"{where}its interval has one end only")
        _check(self, ("per_user",), _or_null(_is_numbers), "a list of finite numbers or null", where)
        _check(self, ("over",), _or_null(_is_word), "a text that is not empty or null", where)
        if (self.per_user is None) != (self.over is None):
            raise ResultsError(f"{where}per_user and over go together, and one is missing")
        if self.per_user is not None and len(self.per_user) != self.n:
            raise ResultsError(f"{where}per_user has {len(self.per_user)} values for {self.n} users")
        if self.per_user and abs(sum(self.per_user) / self.n - self.value) > _ROUNDED:
            raise ResultsError(f"{where}value is not the mean of per_user")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a chapter found of a claim.

    Attributes:
        id: short and unique in the book.
        statement: the claim, as one hears it.
        verdict: one of `VERDICTS`.
        evidence: what was measured.
        condition: when it holds; not empty where the verdict is ``"depends"``.
        chapter: who found it.
        more: fields that are not known here.

    Raises:
        ResultsError: the verdict is not known, or a part is missing or no text.
    """

    id: str
    statement: str
    verdict: str
    evidence: str
    condition: str
    chapter: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"claim {_short(self.id)}: "
        parts = ("id", "statement", "verdict", "evidence", "condition", "chapter")
        _check(self, parts, _is_text, "a text", where)
        if self.verdict not in VERDICTS:
            raise ResultsError(f"{where}verdict {self.verdict!r} is not one of {', '.join(VERDICTS)}")
        needed = ["id", "statement", "evidence", *(["condition"] if self.verdict == "depends" else [])]
        empty = [part for part in needed if not getattr(self, part).strip()]
        if empty:
            raise ResultsError(f"{where}{' and '.join(empty)} must not be empty")


@dataclass(frozen=True, kw_only=True)
class ChapterResults:
    """Everything that one chapter's run recorded.

    Attributes:
        chapter: the notebook's name without its suffix, which is the file's, too.
        title: the notebook's title, filled in by the runner.
        dataset: the data set's name, as the reader would pass it to `load_movielens`.
        seed: the seed of the run.
        device: what torch calls it.
        hardware: the device in words.
        seconds: from the making of the `Chapter` to its end.
        peak_memory_mb: the most memory held, in MB of 10^6 bytes; None where the system does not say.
        versions: of the packages that results depend on.
        results: metrics of models.
        numbers: plain numbers, by name.
        headline_numbers: those of the numbers that are held against accepted bands, with whether no random
            number was drawn.
        claims: what the chapter found.
        more: fields that are not known here.

    Raises:
        ResultsError: a field is not of its kind, or the parts do not fit together.
    """

    chapter: str
    title: str
    dataset: str
    seed: int
    device: str
    hardware: str
    seconds: float
    peak_memory_mb: float | None
    versions: Mapping[str, str]
    results: Sequence[Result]
    numbers: Mapping[str, float]
    headline_numbers: Mapping[str, bool]
    claims: Sequence[Claim]
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self, ("chapter", "device"), _is_word, "a text that is not empty")
        _check(self, ("title", "dataset", "hardware"), _is_text, "a text")
        _check(self, ("seed",), _is_whole, "a whole number")
        _check(self, ("seconds",), _is_number, "a finite number")
        _check(self, ("peak_memory_mb",), _or_null(_is_number), "a finite number or null")
        _check_each(self, "versions", _is_text, "a text")
        _check_each(self, "numbers", _is_number, "a finite number")
        _check_each(self, "headline_numbers", _is_flag, "true or false")
        if twice := _repeated([*(row.name for row in self.results), *self.numbers]):
            raise ResultsError(f"the name {twice!r} stands for more than one value")
        if twice := _repeated(claim.id for claim in self.claims):
            raise ResultsError(f"the claim {twice!r} is made more than once")
        for claim in self.claims:
            if claim.chapter != self.chapter:
                raise ResultsError(f"claim {claim.id!r}: made by {claim.chapter!r}, not by {self.chapter!r}")
        if unknown := [name for name in self.headline_numbers if name not in self.numbers]:
            raise ResultsError(f"headline_numbers: {unknown[0]!r} is not one of the numbers")

    @property
    def headlines(self) -> dict[str, Headline]:
        """The values that are held against accepted bands, by name."""
        rows = {row.name: Headline(row.value, row.deterministic) for row in self.results if row.headline}
        numbers = {
            name: Headline(self.numbers[name], deterministic)
            for name, deterministic in self.headline_numbers.items()
        }
        return rows | numbers

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The results that a JSON value holds.

        Raises:
            ResultsError: it is not what the schema says.
        """
        parts = _arguments(cls, data, "the file")
        for key, kind in (("results", Result), ("claims", Claim)):
            if not isinstance(parts[key], list):
                raise ResultsError(f"{key} is {_short(parts[key])}, not a list")
            parts[key] = [
                kind(**_arguments(kind, entry, f"{key}[{place}]")) for place, entry in enumerate(parts[key])
            ]
        return cls(**parts)

    def to_json(self) -> dict[str, Any]:
        """The results as plain dicts, lists, texts and numbers."""
        rows = {"results": [_plain(row) for row in self.results]}
        claims = {"claims": [_plain(claim) for claim in self.claims]}
        return _plain(self) | rows | claims

    @classmethod
    def parse(cls, content: bytes, chapter: str) -> Self:
        """The results that a file's content holds.

        Args:
            content: all of the file.
            chapter: whose results they must be.

        Raises:
            ResultsError: it is damaged, is something else, or is another chapter's.
        """
        try:
            data = json.loads(content.decode("utf8"), parse_constant=_finite, parse_float=_finite)
        except ResultsError:
            raise
        except (ValueError, RecursionError) as error:
            raise ResultsError(f"not valid JSON ({error})") from error
        if not isinstance(data, dict) or data.get("chapter") != chapter:
            raise ResultsError(f"not the results of a chapter named {chapter}")
        return cls.from_json(data)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The results of the chapter that a file is named after.

        Raises:
            ResultsError: the file is damaged, is something else, or is another chapter's.
            OSError: it cannot be read at all.
        """
        try:
            return cls.parse(path.read_bytes(), path.stem)
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}; run its notebook again") from error

    def text(self) -> str:
        """The content of the file."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        # one line for all users; inside a text of the file the quotes would be escaped
        return re.sub(r'"per_user": \[[^]]*\]', lambda found: " ".join(found[0].split()), text) + "\n"

    def write(self, directory: Path) -> Path:
        """Writes the file, whole or not at all, into a folder that is made where it is missing.

        Returns:
            The file.

        Raises:
            OSError: what the file system refused.
        """
        text = self.text()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.chapter}.json"
        with write_whole(path) as part:
            part.write_text(text, encoding="utf8")
        return path


def results_dir() -> Path:
    """The folder of the chapters' results: ``RECSYS_RESULTS``, or ``results`` in the working folder."""
    return Path(os.environ.get("RECSYS_RESULTS") or "results")


def read_all(directory: str | Path | None = None) -> dict[str, ChapterResults]:
    """What the chapters recorded, by chapter, in the order of their names; empty if none has run.

    Args:
        directory: where the files are; `results_dir` by default.

    Raises:
        ResultsError: a file there is not what `Chapter.finish` writes.
    """
    paths = sorted(Path(directory or results_dir()).glob("*.json"))
    return {path.stem: ChapterResults.read(path) for path in paths}


def recorded(directory: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """What the chapters recorded as plain dicts, the form in which a chapter puts it into a table.

    Args:
        directory: where the files are; `results_dir` by default.

    Raises:
        ResultsError: a file there is not what `Chapter.finish` writes.
    """
    return {name: results.to_json() for name, results in read_all(directory).items()}


def _arguments(kind: Any, data: object, where: str) -> dict[str, Any]:
    """A JSON object as the arguments of a dataclass; fields that it does not have go to ``more``."""
    if not isinstance(data, dict):
        raise ResultsError(f"{where} is {_short(data)}, not an object")
    known = [part for part in fields(kind) if part.name != "more"]
    needed = [part.name for part in known if part.default is MISSING and part.default_factory is MISSING]
    if missing := [name for name in needed if name not in data]:
        raise ResultsError(f"{where} has no {', '.join(missing)}")
    names = {part.name for part in known}
    more = {name: value for name, value in data.items() if name not in names}
    return {name: value for name, value in data.items() if name in names} | {"more": more}


def _plain(part: Any) -> dict[str, Any]:
    """The fields of a dataclass, in their order, and after them those that it only passes on."""
    return {one.name: getattr(part, one.name) for one in fields(part) if one.name != "more"} | dict(part.more)


def _check(
    part: object, names: Iterable[str], fits: Callable[[Any], bool], kind: str, where: str = ""
) -> None:
    for name in names:
        value = getattr(part, name)
        if not fits(value):
            raise ResultsError(f"{where}{name} is {_short(value)}, not {kind}")


def _check_each(part: object, name: str, fits: Callable[[Any], bool], kind: str) -> None:
    values = getattr(part, name)
    if not isinstance(values, Mapping):
        raise ResultsError(f"{name} is {_short(values)}, not an object")
    for key, value in values.items():
        if not fits(value):
            raise ResultsError(f"{name}: {_short(key)} is {_short(value)}, not {kind}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # false for NaN, and exact for a whole number that is too large for a float
    return abs(value) <= sys.float_info.max


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_seed(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _finite(token: str) -> float:
    """A number of a JSON text, which may spell NaN, infinity, or what is infinite as a float."""
    value = float(token)
    if not _is_number(value):
        raise ResultsError(f"it holds {token}, which is not finite")
    return value


def _repeated(names: Iterable[str]) -> str:
    """The first name that comes more than once, or nothing."""
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _short(value: object) -> str:
    """A value for a message; one that is long is cut short."""
    return reprlib.repr(value)
