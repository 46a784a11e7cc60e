"""Recorded runs: what a page shows and does not repeat, with all that says where it comes from.

What needs a network, a GPU or a quarter of an hour is run by one command and kept as a small JSON file in
``book/recorded/``: when and where it was made, with which versions, from which code and inputs, and what came
out. A chapter shows it under that label (``chapter.recorded_run("retrieval")``), and says so where the code
has changed since. A script writes one with `write_run`.

Only the standard library is needed, so that the book's tools read such files without importing torch.
"""

import ast
import datetime
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from recsys_lib.files import write_whole

__all__ = ["RecordedRun", "RecordedRunError", "code_hash", "recorded_runs_dir", "show_run", "write_run"]

REPOSITORY = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_HASH = re.compile(r"[0-9a-f]{16,64}")


class RecordedRunError(ValueError):
    """A recorded run is not what the schema says; the message names the part, and the file that was read."""


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """One run: what was measured, and all that is needed to judge it and to make it again.

    Attributes:
        name: the file's name without its suffix.
        about: what was measured, and how.
        date: the day, ``2026-01-31``.
        command: what makes it again, typed in the repository's root.
        device: the machine in words, such as ``"cuda: NVIDIA H100"``.
        versions: of the packages that matter.
        code: hashes of the code, by the names that `code_hash` takes; None where they are not known, as of a
            run older than this schema.
        inputs: hashes of what the run started from, by name; None where they are not known.
        settings: what could have been chosen otherwise: sizes, rounds, seeds.
        values: what came out. A measured value stands with its interval: an object that has ``low`` and
            ``high`` beside it.
    """

    name: str
    about: str
    date: str
    command: str
    device: str
    versions: dict[str, str]
    code: dict[str, str] | None
    inputs: dict[str, str] | None
    values: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "about", "date", "command", "device"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise RecordedRunError(f"{name!r} is {text!r}, not a text")
        if not _NAME.fullmatch(self.name):
            raise RecordedRunError(
                f"{self.name!r} is no name: use lower-case letters, digits, single hyphens"
            )
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError as error:
            raise RecordedRunError(f"'date' is {self.date!r}, not a day such as '2026-01-31'") from error
        for name in ("versions", "code", "inputs"):
            part = getattr(self, name)
            if part is None and name != "versions":
                continue
            if not isinstance(part, dict) or not all(isinstance(text, str) for text in part.values()):
                raise RecordedRunError(f"{name!r} is {part!r}, not an object of texts")
            if name != "versions" and not all(_HASH.fullmatch(text) for text in part.values()):
                raise RecordedRunError(f"{name!r} holds what is no hash: {part!r}")
        for name in ("settings", "values"):
            if not isinstance(getattr(self, name), dict):
                raise RecordedRunError(f"{name!r} is {getattr(self, name)!r}, not an object")
            _check(getattr(self, name), name)
        if not self.values:
            raise RecordedRunError("'values' is empty: nothing was measured")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Reads one from its file.

        Raises:
            RecordedRunError: it is not what `write` writes.
            FileNotFoundError: it is not there.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text("utf8"), parse_constant=_refuse)
            if not isinstance(content, dict):
                raise RecordedRunError("it is not an object")
            known = [part.name for part in fields(cls)]
            if missing := [name for name in known if name not in content]:
                raise RecordedRunError(f"it has no {', '.join(missing)}")
            if unknown := [name for name in content if name not in known]:
                raise RecordedRunError(f"it has {', '.join(unknown)}, which is not of the schema")
            run = cls(**content)
            if run.name != path.stem:
                raise RecordedRunError(f"'name' is {run.name!r}, not that of the file")
        except (json.JSONDecodeError, UnicodeDecodeError, RecordedRunError) as error:
            raise RecordedRunError(f"{path}: {error}") from error
        return run

    def write(self, path: str | Path) -> None:
        """Writes it, whole or not at all."""
        path = Path(path)
        if path.stem != self.name:
            raise RecordedRunError(f"the run is named {self.name!r}, and the file {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part:
            part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf8")

    def changed(self, root: str | Path = REPOSITORY) -> list[str]:
        """The parts of its code that are not what they were, or are gone.

        Args:
            root: the repository.
        """
        return [name for name, then in (self.code or {}).items() if code_hash(name, root) != then]

    def label(self, root: str | Path = REPOSITORY, inputs: Mapping[str, str] | None = None) -> str:
        """What is shown above its values, as Markdown: what it is, and what speaks against it.

        Args:
            root: the repository.
            inputs: hashes of the inputs as they are here, where the caller knows them.
        """
        made_with = ", ".join(f"{package} {number}" for package, number in self.versions.items())
        lines = [f"*Recorded run*: {self.date}, {self.device}, {made_with}. `{self.command}` makes it again."]
        if changed := self.changed(root):
            lines.append(f"**It is older than the code:** {_listed(changed)} changed since.")
        others = [name for name, now in (inputs or {}).items() if (self.inputs or {}).get(name, now) != now]
        if others:
            lines.append(f"**It was made from other inputs than those here:** {_listed(others)}.")
        unknown = [name for name, part in (("code", self.code), ("inputs", self.inputs)) if part is None]
        if unknown:
            lines.append(f"From which {' and which '.join(unknown)} it was made is not known.")
        return " ".join(lines)


def recorded_runs_dir() -> Path:
    """The folder of the recorded runs: ``book/recorded`` of the repository that the library is run from."""
    return REPOSITORY / "book" / "recorded"


def show_run(
    name: str,
    live: Callable[[], dict[str, Any]] | None = None,
    *,
    when: bool | Callable[[], bool] = False,
    inputs: Mapping[str, str] | None = None,
    here: str = "",
    folder: str | Path | None = None,
) -> tuple[dict[str, Any] | None, str]:
    """The values of a recorded run, or of a live one where the means are there, and what to say of them.

    Args:
        name: of the run.
        live: makes the values here, in the form in which they were recorded.
        when: whether ``live`` is run: a condition, or what finds it out.
        inputs: hashes of the inputs as they are here, by their names in the record.
        here: this machine in words, said of a live run.
        folder: where the files are; `recorded_runs_dir` by default, with the repository two folders above.

    Returns:
        The values, ``None`` where there are none; and the text.

    Raises:
        RecordedRunError: the file is not a recorded run, or what was run live is no set of values.
        ValueError: ``when`` holds and there is nothing to run.
    """
    home = Path(folder) if folder else recorded_runs_dir()
    if when() if callable(when) else when:
        if live is None:
            raise ValueError(f"recorded run {name!r}: give the function that runs it live")
        values = live()
        if not isinstance(values, dict) or not values:
            raise RecordedRunError(f"{name!r} run live gave {values!r}, not an object of values")
        _check(values, name)
        return values, f"*Run live*: {here or 'here'}."
    path = home / f"{name}.json"
    if not path.exists():
        return None, (
            f"**The recorded run `{name}` is not here**, so nothing is shown of it. It is a file of the "
            f"repository, `book/recorded/{name}.json`, and is found where the library is run from a checkout."
        )
    run = RecordedRun.read(path)
    return run.values, run.label(home.parents[1], inputs)


def write_run(
    path: str | Path,
    *,
    about: str,
    command: str,
    device: str | None = None,
    versions: Iterable[str],
    code: Iterable[str],
    inputs: Mapping[str, str],
    values: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    root: str | Path = REPOSITORY,
) -> RecordedRun:
    """Records a run that has just ended.

    Args:
        path: the file, such as ``book/recorded/retrieval.json``; its name is the run's.
        about: what was measured, and how: mostly the docstring of the script.
        command: what makes it again, typed in the repository's root.
        device: the machine in words; by default this one's processor, cores and system.
        versions: names of the packages that matter; Python's own version is added.
        code: what the values depend on, by the names that `code_hash` takes.
        inputs: hashes of what the run started from, by name.
        values: what came out, see `RecordedRun`.
        settings: what could have been chosen otherwise.
        root: the repository.

    Returns:
        The run as it was written.

    Raises:
        RecordedRunError: a value is not finite, lies outside its interval or is no JSON; or a part of the
            code is not there.
    """
    hashes: dict[str, str] = {}
    for name in code:
        found = code_hash(name, root)
        if found is None:
            raise RecordedRunError(f"there is no code {name!r} in {root}")
        hashes[name] = found
    if device is None:
        device = f"cpu: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    run = RecordedRun(
        name=Path(path).stem,
        about=about.strip(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=command,
        device=device,
        versions={"python": platform.python_version(), **{name: version(name) for name in versions}},
        code=hashes,
        inputs=dict(inputs),
        settings=dict(settings or {}),
        values=dict(values),
    )
    run.write(path)
    return run


# ---------------------------------------------------------------------- code


def code_hash(name: str, root: str | Path = REPOSITORY) -> str | None:
    """A hash of code that stays the same where only comments, docstrings or blank lines change.

    Args:
        name: a file, ``"recsys_lib/retrieval/exact.py"``; or a function, class or constant at the top of one,
            ``"benchmarks/retrieval.py::measure"``.
        root: the folder that the file is named from.

    Returns:
        Hexadecimal, or None where there is no such code.
    """
    file, _, part = name.partition("::")
    path = Path(root) / file
    if not path.is_file():
        return None
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text("utf8")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None if part else hashlib.sha256(text.encode()).hexdigest()
    nodes: list[ast.stmt] = [node for node in tree.body if not part or part in _defines(node)]
    if part and not nodes:
        return None
    ignored = {line for node in (tree, *nodes) for line in _docstring_lines(node)}
    wanted = {line for node in nodes for line in range(_first_line(node), (node.end_lineno or 0) + 1)}
    lines = [line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number in wanted - ignored]
    kept = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _defines(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module gives a meaning to."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {
        name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)
    }


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    """The lines of every docstring below a node, its own included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield from range(first.lineno, (first.end_lineno or 0) + 1)


# ---------------------------------------------------------------------- values


def _check(value: Any, where: str) -> None:
    """Refuses what is no JSON, is not finite, or contradicts its own interval."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise RecordedRunError(f"{where} has the name {name!r}, which is no text")
            _check(part, f"{where}.{name}")
        if {"low", "high"} <= value.keys():
            middle = next(
                (value[name] for name in ("value", "mean", "median") if name in value), value["low"]
            )
            if None not in (value["low"], middle, value["high"]) and not (
                value["low"] <= middle <= value["high"]
            ):
                raise RecordedRunError(f"{where} lies outside its interval: {value}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check(part, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecordedRunError(f"{where} is {value}; what is not finite cannot be recorded")
    elif not isinstance(value, str | int | float | None):
        raise RecordedRunError(f"{where} is a {type(value).__name__}; use plain numbers and texts")


def _refuse(constant: str) -> None:
    raise RecordedRunError(f"it holds {constant}, which is not finite")


def _listed(names: list[str]) -> str:
    marked = [f"`{name}`" for name in names]
    if len(marked) > 4:
        marked = [*marked[:3], f"{len(marked) - 3} other parts"]
    return marked[0] if len(marked) == 1 else f"{', '.join(marked[:-1])} and {marked[-1]}"
