"""Mend in the pages' HTML what keeps them from being read on a narrow screen or by a screen reader.

In the text of a page, before it is written:

* each line of code is an element of its own, so that a line which is too long is broken below its own indent;
* the empty corner of a table is no heading, and a negative number in a cell has a true minus sign;
* a folded cell is called what its summary says;
* the entries of the bibliography are items of their list;
* no line begins with what belongs to the end of the one above: a unit after its number, the end of a
  range, a chapter's title after its number, a figure's number after its name, a comma after a formula;
* the space before a link is not underlined with it.

In the frame that the theme puts around it:

* everything is inside a landmark;
* what a button shows is what it is called.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_CODE = re.compile(r'(<div class="highlight"><pre>(?:<span></span>)?)(.*?)(</pre>)', re.DOTALL)
_EMPTY_HEADING = re.compile(r"<th((?: [^>]*)?)>\s*(?:<p>\s*</p>\s*)?</th>")
_NEGATIVE = re.compile(r"(<td(?: [^>]*)?>)-(?=[\d.][\d.,]*(?:e[-+]?\d+)?</td>)")
_NUMBERED = re.compile(
    r'(<(?:span class="doc"|p class="prev-next-title")>\d+\.|<span class="std std-numref">(?:Figure|Table)) '
)
# Code, formulas and tags are matched first, and left as they are.
_TEXT = re.compile(
    r"""(?P<kept><(?P<code>pre|code|script|style)\b.*?</(?P=code)>
        |<(?P<math>span|div)\ class="math\b.*?</(?P=math)>|<[^>]*>)
    |(?P<dash>(?<=\d)–(?=\d))
    |(?<=\d)\ (?=%|(?:ms|s|min|h|KB|MB|GB)\b)|(?<=±)\ (?=\d)""",
    re.DOTALL | re.VERBOSE,
)
_FORMULA = re.compile(
    r'(?<!<span class="unbroken">)(<span class="math\b[^>]*>(?:(?!</span>).)*</span>[.,:;?!)’”]+)', re.DOTALL
)
_SPACE_IN_LINK = re.compile(r'(<p class="admonition-title">[^<]*[^<\s])(<a [^>]*>) ')
_SEARCH = '<button class="btn search-button-field search-button__button pst-js-only"'
_FRAME = (
    # the book's name stands beside the navigation, which alone is a landmark
    (
        '<div id="pst-primary-sidebar" class',
        '<div id="pst-primary-sidebar" role="complementary" aria-label="The book" class',
    ),
    # the button's text is its name, without the keys
    (f'{_SEARCH} title="Search" aria-label="Search"', f'{_SEARCH} title="Search"'),
    (
        '<span class="search-button__kbd-shortcut">',
        '<span class="search-button__kbd-shortcut" aria-hidden="true">',
    ),
)


def code_lines(match: re.Match[str]) -> str:
    """Return a block of code whose lines are elements; a long one is broken with a hanging indent.

    Pygments closes its marks at the end of each line, so a line is whole.
    """
    opening, code, closing = match.groups()
    lines = code.removesuffix("\n").split("\n")
    if any(line.count("<span") != line.count("</span>") for line in lines):
        return match[0]
    return opening + "".join(code_line(line) for line in lines) + closing


def code_line(line: str) -> str:
    """Return a line as an element that knows the columns of its indent."""
    text = re.sub(r"<[^>]*>", "", line)
    indent = len(text) - len(text.lstrip(" "))
    style = f' style="--in:{indent}"' if indent else ""
    return f'<span class="line"{style}>{line}\n</span>'


def readable(body: str) -> str:
    """Return the text of a page with its code, data frames and bibliography mended."""
    body = _CODE.sub(code_lines, body)
    body = _EMPTY_HEADING.sub(r"<td\1></td>", body)
    body = _NEGATIVE.sub("\\1\N{MINUS SIGN}", body)
    body = unbroken(body)
    body = _SPACE_IN_LINK.sub(r"\1 \2", body)
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    return body.replace('role="doc-biblioentry"', 'role="listitem"')


def unbroken(body: str) -> str:
    """Return the text of a page in which numbers keep their units, and formulas the sign behind them.

    A browser may break a line on either side of a formula, as if it were a picture.
    """
    body = _NUMBERED.sub("\\1\N{NO-BREAK SPACE}", body)
    body = _TEXT.sub(joined, body)
    return _FORMULA.sub(r'<span class="unbroken">\1</span>', body)


def joined(match: re.Match[str]) -> str:
    """Return code, a formula or a tag as it is; a number's dash or space so that no line ends there."""
    return match["kept"] or ("–\N{WORD JOINER}" if match["dash"] else "\N{NO-BREAK SPACE}")


def mend_text(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Mend the text of a page (``html-page-context``)."""
    if app.builder.format == "html" and context.get("body"):
        context["body"] = readable(context["body"])


def mend_frames(app: Sphinx, error: Exception | None) -> None:
    """Mend what stands around the text (``build-finished``)."""
    if error is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    for path in root.rglob("*.html"):
        text = path.read_text("utf8")
        mended = framed(text)
        if mended != text and root / "_static" not in path.parents:
            path.write_text(mended, encoding="utf8")


def framed(text: str) -> str:
    """Return a whole page with its frame mended."""
    for wrong, right in _FRAME:
        text = text.replace(wrong, right)
    return _NUMBERED.sub("\\1\N{NO-BREAK SPACE}", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("html-page-context", mend_text, priority=900)
    app.connect("build-finished", mend_frames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
