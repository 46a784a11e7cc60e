"""Sentences that the run writes: Markdown on every host, with its numbers in the typography of prose.

A sentence that depends on a result cannot stand in a Markdown cell, where nothing keeps it true. It stands in
a cell that calls ``chapter.say(f"...")``: each host hides the code by its own means and shows the text.
"""

import inspect
import re

from recsys_lib.chapter.show import shell

__all__ = ["prose", "say"]

# What is not prose: code, formulas, and where links lead.
NOT_PROSE = re.compile(
    r"(`+).*?\1|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)\s]*\)|<https?:[^>]*>|https?://\S+", re.DOTALL
)
_FIELD = re.compile(r"\{[^{}]*\}")
_NOT_FINITE = re.compile(r"(?<!\w)[-+−]?(?:nan|inf)(?!\w)")
_UNFORMATTED = re.compile(r"\d\.\d{9,}")
_SIGNED = re.compile(r"(?<![\w.\-−)\]])-(\d[\d,]*(?:\.\d+)?|\.\d+)(?!\w|[.,]\d)")


def say(text: str) -> None:
    """Shows a text as Markdown; in plain Python it is printed.

    Args:
        text: CommonMark, tables and dollar math. Common indentation is taken out, so that it may be written
            over several lines between triple quotes.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, or could not be meant: see `prose`.
    """
    text = prose(text)
    if shell() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/markdown": text, "text/plain": text}, raw=True)


def prose(text: str) -> str:
    """A text as it is shown: hyphens before numbers are true minus signs, and no zero has a sign.

    Code, formulas and the targets of links are left as they are.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty; it has braces, as when the ``f`` before the quotes is missing; or a number in
            it is not finite or was not formatted.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a text to show, got {type(text).__name__}: {text!r}")
    text = inspect.cleandoc(text)
    if not text.strip():
        raise ValueError("there is nothing to say: the text is empty")
    words = NOT_PROSE.sub(" ", text)
    if field := _FIELD.search(words):
        raise ValueError(
            f"{field[0]!r} would be shown as it is; put an f before the quotes, and code or LaTeX between "
            "backticks or dollars"
        )
    if wrong := _NOT_FINITE.search(words):
        raise ValueError(
            f"a value is {wrong[0]}, which no sentence can report: ...{_around(words, wrong)}..."
        )
    if wrong := _UNFORMATTED.search(words):
        raise ValueError(f"format the number, as in f'{{x:.3f}}': ...{_around(words, wrong)}...")
    parts, end = [], 0
    for other in NOT_PROSE.finditer(text):
        parts += [_SIGNED.sub(_minus, text[end : other.start()]), other[0]]
        end = other.end()
    return "".join([*parts, _SIGNED.sub(_minus, text[end:])])


def _minus(match: re.Match[str]) -> str:
    zero = not float(match[1].replace(",", ""))
    return match[1] if zero else f"\N{MINUS SIGN}{match[1]}"


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(match.start() - 20, 0) : match.end() + 20].replace("\n", " ")
