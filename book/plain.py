r"""What a chapter's Markdown may hold, so that it reads the same in the book, on Colab and on GitHub.

CommonMark, tables and dollar math, and nothing else: no role, no directive, no label, no macro of our own.
What the book adds to that it takes from cell tags and from ordinary links (``book/_ext/dress.py``).
"""

import re
from collections.abc import Iterator
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

from book import papers

# What a Markdown cell can be, by its tag. The title is the box's where the cell has no heading of its own.
BOXES = {
    "guess": "Guess first",
    "check": "Check yourself",
    "mistake": "A classical mistake",
    "note": "Note",
}
EXERCISE, SOLUTION = "exercise", "solution"
EXERCISE_HEADING = re.compile(r"### Exercise: (?P<title>\S.*)")
# How hard an exercise is, said first in its text.
GRADE = re.compile(r"\*(?:Easy|Medium|Hard)\.\* ")
SOLUTION_HEADING = re.compile(r"### Solution\b.*")

# The last line of a chapter's first cell. The book has its own button, and leaves the line out.
_COLAB_LINK = "[Open this chapter on Colab]"
_COLAB_LINE = re.compile(rf"\n*^{re.escape(_COLAB_LINK)}\(\S*\)\s*\Z", re.MULTILINE)

_HEADING = re.compile(r"^#{1,6}\s", re.MULTILINE)
# Elements that every host shows; `details` folds an answer without a kernel.
_ELEMENTS = {"details", "summary"}
# Macros that an earlier notation defined for the book alone.
_OWN_MACROS = re.compile(r"\\(?:vect|users|items)(?![a-zA-Z])")
_RAW = {
    r"\{[a-zA-Z][\w:+-]*\}(?=`|$)": "a role",
    r"\{\{.*?\}\}": "a substitution",
    r"^:::+": "a directive",
    r"^\([\w:.-]+\)=\s*$": "a label",
    r"^\+\+\+": "a block break",
    r"^%\s": "a comment",
    r"^: ": "a definition list",
    r"(?:^|[\])])\{[#.%][^}]*\}": "an attribute",
    r"\[\^[^\]]+\]": "a footnote",
    r"\\begin\{": "a formula without dollars",
    r"~~\S": "struck-out text",
}


def parser() -> MarkdownIt:
    """A plain renderer, as a host of notebooks has it: CommonMark, tables and dollar math."""
    return (
        MarkdownIt("commonmark")
        .enable("table")
        .use(dollarmath_plugin, allow_space=False, double_inline=True, renderer=_formula)
    )


def _formula(content: str, options: dict[str, Any]) -> str:
    """A formula as MathJax finds it."""
    escaped = content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"\\[{escaped}\\]" if options.get("display_mode") else f"\\({escaped}\\)"


_PARSER = parser()


def plain_problems(markdown: str) -> list[str]:
    """What in a Markdown text not every host would show, and links to papers without an entry."""
    return [*_token_problems(_PARSER.parse(markdown)), *unknown_papers(markdown)]


def unknown_papers(markdown: str) -> list[str]:
    """The links of a Markdown text to papers that the bibliography does not know, in words."""
    return [
        f"{address} leads to a paper that book/references.bib does not know; add its entry, with this "
        "address as its doi, eprint or url"
        for token in _all(_PARSER.parse(markdown))
        if token.type == "link_open" and papers.is_unknown(address := str(token.attrGet("href")))
    ]


def with_colab_link(source: str, address: str) -> str:
    """A chapter's first cell, ending in a link that opens it on Colab: GitHub shows a notebook, no button."""
    return f"{without_colab_link(source)}\n\n{_COLAB_LINK}({address})"


def without_colab_link(source: str) -> str:
    """A chapter's first cell as the book shows it."""
    return _COLAB_LINE.sub("", source)


def _all(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from token.children or []


def _token_problems(tokens: list[Token]) -> list[str]:
    found = []
    for token in _all(tokens):
        if token.type == "fence" and token.info.strip().startswith("{"):
            found.append(f"a directive: {token.info.strip()}")
        elif token.type in ("html_block", "html_inline"):
            found += _html_problems(token.content)
        elif token.type.startswith("math") and (own := _OWN_MACROS.search(token.content)):
            found.append(f"a macro that MathJax does not know: {own[0]}")
        elif token.type == "image":
            found.append(
                f"an image: {token.content or token.attrGet('src')}; draw it in a cell, or say it in words"
            )
        elif token.type == "inline":
            found += _text_problems(_words(token))
            written = re.sub(r"(`+).*?\1|\$[^$]*\$", "", token.content, flags=re.DOTALL)
            found += [f"a formula without dollars: {part}" for part in re.findall(r"\\\(.*?\\\)", written)]
    return found


def _words(token: Token) -> str:
    """The text of a paragraph, without code and formulas."""
    parts = []
    for child in token.children or []:
        if child.type == "text":
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type == "code_inline":
            parts.append("`")
        elif child.type.startswith("math"):
            parts.append(" ")
        elif child.type == "link_close":
            parts.append("]")  # what follows a link at once might be its attributes
    return "".join(parts)


def _text_problems(text: str) -> list[str]:
    found = [
        f"{name}: {match[0].strip()}"
        for pattern, name in _RAW.items()
        for match in re.finditer(pattern, text, re.MULTILINE)
    ]
    if dollars := re.search(r"\$[^$\n]*\$|\$\$", text):
        found.append(
            f"a formula that not every host sees (no space or line may follow the dollar): {dollars[0]}"
        )
    return found


def _html_problems(html: str) -> list[str]:
    names = re.findall(r"</?([a-zA-Z][\w-]*)", html)
    found = [f"HTML that not every host shows: <{name}>" for name in names if name.lower() not in _ELEMENTS]
    return found + (["an HTML comment"] if "<!--" in html else [])


def heading_problems(source: str, tags: list[str]) -> list[str]:
    """What keeps the book from dressing a Markdown cell as its tags say."""
    if EXERCISE in tags and not EXERCISE_HEADING.match(source):
        return ["an exercise starts with the heading '### Exercise: Its title'"]
    if EXERCISE in tags and not GRADE.match(_below_heading(source).lstrip()):
        return ["an exercise says how hard it is: its text starts with *Easy.*, *Medium.* or *Hard.*"]
    if {EXERCISE, SOLUTION, *BOXES} & set(tags) and _HEADING.search(_below_heading(source)):
        return ["a heading in the middle of a box; start another cell, or make it bold"]
    return []


def _below_heading(source: str) -> str:
    """The source without a heading that it starts with; fenced code is left out, where '#' is a comment."""
    body = re.sub(r"\A#{1,6} .*", "", source)
    return re.sub(r"^(`{3,}|~{3,}).*?^\1", "", body, flags=re.MULTILINE | re.DOTALL)
