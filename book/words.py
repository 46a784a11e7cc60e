"""Change the words that a chapter says without running it again.

What ``chapter.say(f"...")`` shows is the words of a text and the values of the expressions in it. Words
change no value, so a copy is not compared by them. The values are read off what the copy shows, as what
stands between the former words, and the new words are put around them. Where that is not certain, the
chapter is run.
"""

import ast
import re
from typing import Any

from recsys_lib.chapter.say import NOT_PROSE, prose

VALUE = "\ue000"  # stands in a text for the value of an expression; a letter of no alphabet


def without_words(source: str) -> str:
    """What the values of a cell depend on: its code without comments and without the words that it says.

    The source of a cell that says nothing is returned as it is.
    """
    tree, calls = _calls(source)
    for call in calls:
        values = [part for part in _parts(call) if isinstance(part, ast.FormattedValue)]
        call.args = [ast.Tuple([*values], ast.Load())]
    return ast.dump(tree) if calls else source


def reworded(outputs: list[dict[str, Any]], before: str, after: str) -> list[dict[str, Any]] | None:
    """The outputs of a cell with its new words around the same values; None if the cell has to be run.

    Args:
        outputs: of the cell as it was.
        before: its source then.
        after: its source now.
    """
    if before == after:
        return outputs
    if without_words(before) != without_words(after):
        return None
    changes = list(zip(_texts(before), _texts(after), strict=True))
    made = []
    for output in outputs:
        if "text/markdown" in output.get("data", {}):
            shown = "".join(output["data"]["text/markdown"])
            # a call may have been passed over, or repeated; one alone must be able to have said this
            fits = [(values, new) for old, new in changes for values in _values(old, new, shown)]
            if len(fits) != 1 or fits[0][0] is None:
                return None
            try:
                text = prose(_filled(fits[0][1], fits[0][0]))
            except ValueError:
                return None  # it cannot be said; the run tells why
            data = {**output["data"], "text/markdown": text, "text/plain": text}
            output = {**output, "data": data}
        made.append(output)
    return made


def _calls(source: str) -> tuple[ast.AST, list[ast.Call]]:
    """The tree of a cell's code, and the calls in it that say one literal text."""
    try:
        tree = ast.parse(source) if "chapter.say" in source else ast.Module([], [])
    except SyntaxError:  # a line of IPython's own
        return ast.Module([], []), []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 1]
    said = [call for call in calls if ast.unparse(call.func) == "chapter.say" and not call.keywords]
    return tree, [call for call in said if _parts(call)]


def _parts(call: ast.Call) -> list[ast.expr]:
    """The words and the expressions of what is said; none where it is no literal text."""
    text = call.args[0]
    if isinstance(text, ast.JoinedStr):
        return text.values
    return [text] if isinstance(text, ast.Constant) and isinstance(text.value, str) else []


def _texts(source: str) -> list[str]:
    """What a cell says, each with a mark for each value."""
    return [
        "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in _parts(call))
        for call in _calls(source)[1]
    ]


def _filled(text: str, values: list[str]) -> str:
    """A text with its values."""
    words = text.split(VALUE)
    return "".join([words[0], *(value + more for value, more in zip(values, words[1:], strict=True))])


def _values(old: str, new: str, shown: str) -> list[list[str] | None]:
    """The values with which a text reads as shown: nothing if it cannot, None in place of values in doubt."""
    first, *between = prose(old).split(VALUE)
    if not between:
        return [[]] if shown == first else []
    *between, last = between
    end = len(shown) - len(last)
    if not shown.startswith(first) or not shown.endswith(last) or len(first) > end:
        return []
    earliest, at = [], len(first)
    for words in between:
        if (found := shown.find(words, at, end)) < 0:
            return []
        earliest.append(found)
        at = found + len(words)
    latest: list[int] = []
    until = end
    for words in reversed(between):
        until = shown.rfind(words, len(first), until)
        latest.insert(0, until)
    begins = [len(first), *(found + len(words) for found, words in zip(earliest, between, strict=True))]
    values = [shown[begin:stop] for begin, stop in zip(begins, [*earliest, end], strict=True)]
    # an empty value that starts a line would have taken the spaces after it along
    around = zip([first, *between], [*between, last], begins, strict=True)
    empty = any(
        re.search(r"(^|\n) *$", before) and after[:1] == " " and shown.startswith(after.lstrip(" "), begin)
        for before, after, begin in around
    )
    apart = VALUE + VALUE not in f"{old} {new}" and "\n" not in "".join(values)
    alike = prose(_filled(old, values)) == shown and _around(old) == _around(new)
    return [values if earliest == latest and alike and apart and not empty else None]


def _around(text: str) -> list[tuple[bool, str, str]]:
    """What decides, for each value, whether a hyphen that it starts with is shown as a minus sign."""
    other = [range(*match.span()) for match in NOT_PROSE.finditer(text)]
    return [
        (
            any(place in span for span in other),
            "".join(re.findall(r"[\w.\-\N{MINUS SIGN})\]]$", text[:place])),
            "".join(re.findall(r"^(?:\w|[.,]\d)", text[place + 1 :])),
        )
        for place, sign in enumerate(text)
        if sign == VALUE
    ]
