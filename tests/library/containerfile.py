"""Reads a container file, as strictly as its builders do and in places more so."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "USER",
    "VOLUME", "WORKDIR",
}  # fmt: skip
_BEFORE_FROM = {"ARG", "FROM"}
_LISTS = {"CMD", "ENTRYPOINT", "VOLUME"}  # here only as JSON: a shell between would swallow signals


@dataclass(frozen=True)
class Instruction:
    """One of them.

    Attributes:
        line: on which it begins, from 1.
        name: in capitals.
        flags: those before the arguments, without dashes.
        words: the arguments.
        text: all after the name, on one line.
    """

    line: int
    name: str
    flags: dict[str, str]
    words: list[str]
    text: str


def read(text: str) -> list[Instruction]:
    """The instructions of a container file.

    Raises:
        ValueError: a builder would not take it, or it is written in a way that is not wanted here; the
            message names the line.
    """
    found: list[Instruction] = []
    for line, joined in _logical_lines(text):
        name, _, rest = joined.partition(" ")
        if name not in _KNOWN:
            raise ValueError(f"line {line}: {name!r} is no instruction, or one that is not used here")
        if not found and name not in _BEFORE_FROM:
            raise ValueError(f"line {line}: {name} before any FROM")
        found.append(_instruction(line, name, rest.strip()))
    if not any(one.name == "FROM" for one in found):
        raise ValueError("there is no FROM")
    return found


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with those joined that end in a backslash, and without comments."""
    joined: list[tuple[int, str]] = []
    open_at = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("#"):
            continue
        if not line:
            if open_at:
                raise ValueError(f"line {number}: empty after a line that goes on")
            continue
        goes_on = line.endswith("\\")
        part = line.removesuffix("\\").strip()
        if open_at:
            joined[-1] = (joined[-1][0], f"{joined[-1][1]} {part}")
        else:
            joined.append((number, part))
        open_at = number if goes_on else 0
    if open_at:
        raise ValueError(f"line {open_at} goes on, and nothing follows")
    return joined


def _instruction(line: int, name: str, rest: str) -> Instruction:
    flags: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s*", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    if not rest:
        raise ValueError(f"line {line}: {name} of nothing")
    if name == "HEALTHCHECK":
        kind, _, command = rest.partition(" ")
        if kind != "CMD":
            raise ValueError(f"line {line}: HEALTHCHECK needs CMD, got {kind!r}")
        return Instruction(line, name, flags, _json_list(line, name, command), rest)
    if name in _LISTS:
        return Instruction(line, name, flags, _json_list(line, name, rest), rest)
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from error
    fits = {
        "FROM": len(words) == 1 or (len(words) == 3 and words[1] == "AS"),
        "COPY": len(words) >= 2,
        "ENV": all(re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", word) for word in words),
        "EXPOSE": all(word.isdigit() for word in words),
        "USER": len(words) == 1,
        "WORKDIR": len(words) == 1 and words[0].startswith("/"),
    }
    if not fits.get(name, True):
        raise ValueError(f"line {line}: {name} does not take {rest!r}")
    return Instruction(line, name, flags, words, rest)


def _json_list(line: int, name: str, text: str) -> list[str]:
    try:
        words = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line}: {name} takes a JSON list here, got {text!r} ({error})") from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"line {line}: {name} takes a list of texts, got {text!r}")
    return words


def kept(ignore: str, path: Path) -> bool:
    """Whether a file of the build's folder gets past an ignore file; patterns are those used here.

    Raises:
        ValueError: another kind of pattern.
    """
    answer = True
    for raw in ignore.splitlines():
        pattern = raw.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wanted, name = pattern.startswith("!"), pattern.removeprefix("!").rstrip("/")
        if name == "*":
            hit = True
        elif name.startswith("**/") and "*" not in name[3:]:
            hit = name[3:] in path.parts
        elif "*" not in name:
            hit = path == Path(name) or Path(name) in path.parents
        else:
            raise ValueError(f"the pattern {pattern!r} is not understood here")
        answer = wanted if hit else answer
    return answer
