r"""Find measured numbers that were typed into prose.

A measured number comes from the run that made it, through ``chapter.say``; a number of someone else's stands
in a sentence that links its source; a number worked out by hand stands in a cell tagged ``toy``. What is left
are decimals and percentages that nothing keeps true, and this module finds them. A
measured claim in words is a typed number, too: "in less than a second" and "most of the ratings" are true of
one machine or of one data set. The module finds the usual ones; whether a word was measured, it cannot know.

Code, addresses and formulas are not prose. A formula counts as one only if it has a variable in it:
``$\alpha = 0.5$`` is a definition, ``$0.071$`` or ``$\text{NDCG} = 0.071$`` is a typed number.
"""

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from book.papers import is_paper

_PARSER = (
    MarkdownIt("commonmark")
    .enable("table")
    .use(colon_fence_plugin)
    .use(dollarmath_plugin, double_inline=True)
    .use(myst_block_plugin)
    .use(myst_role_plugin)
)

# Directives whose body is not prose; that of every other directive is.
_CODE = {"code", "code-block", "code-cell", "sourcecode", "math", "mermaid", "bibliography", "toctree", "raw"}
_SPOKEN_OPTIONS = {"alt", "caption", "title"}

_WORDS_IN_MATH = re.compile(r"\\(?:text\w*|math[a-z]+|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_VARIABLES = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|eta|theta|kappa|lambda|mu|nu|pi|rho|sigma|tau|phi|omega|ell)\b"
)

# A numeral that only names something is none of ours: "Section 3.2", "Python 3.11", "95 % interval".
_NAMED = re.compile(
    r"\b(?:chapter|section|equation|eq\.|figure|fig\.|table|version|python|exercise|appendix)s?\s*\d+(?:\.\d+)*\b"
    r"|\b(?:90|95|99)\s?%[\s-]+(?:\w+\s+)?(?:interval|confidence|level|band)",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    # .5  1,234.5  1e-6
    r"(?<![\w.\d])[-+]?(?:\d[\d,]*\.\d+|\.\d+|\d+(?=e[-+]?\d))(?:e[-+]?\d+)?(?:\s?%)?(?!\w|\.\d)"
    # 5 %  5 percent
    r"|(?<![\w.])\d[\d,]*(?:\s?%|\s(?:percent|per\scent)\b)",
    re.IGNORECASE,
)
_COUNT = (
    r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|twenty|fifty|hundreds?|thousands?"
    r"|(?:a\s)?few|(?:a\s)?couple\sof|some|several|many|\d+)"
)
_COMPARED = r"(?:time|cost|costs|memory|size|speed|price|error|parameters|accuracy|data|effort|work|storage)"
_CLAIM = re.compile(
    # in less than a second; under two minutes
    rf"(?:(?:less|fewer|more|longer)\sthan|under|barely|only|just)\s{_COUNT}\s(?:milli)?(?:second|minute|hour|day)s?\b"
    # takes a few seconds; finished in ten minutes; takes minutes
    rf"|\b(?:takes?|took|needs?|needed|lasts|lasted|(?:fitted|trained|finished|done|ready|runs?)\sin)\s"
    rf"(?:(?:about|only|around|roughly|just)\s)?(?:{_COUNT}\s)?(?:milli)?(?:second|minute|hour)s?\b"
    rf"|\bin\s(?:a\sfew|a\scouple\sof|several|mere)\s(?:milli)?(?:second|minute|hour)s\b"
    # a fraction of the time; half the memory; a third of the cost
    rf"|\b(?:half|(?:a|one)\s(?:(?:small|tiny|large)\s)?(?:fraction|half|third|quarter|fifth|tenth)\sof|"
    rf"(?:two|three)\s(?:thirds|quarters)\sof)\s(?:the|its|their)\s{_COMPARED}\b"
    # twice as fast; ten times as much; three times faster
    rf"|(?<!how\s)\b(?:twice|half|{_COUNT}\stimes)\sas\s(?:fast|slow|much|many|long|large|big|good|cheap|high|often)\b"
    rf"|(?<!how\s)\b{_COUNT}\stimes\s(?:faster|slower|longer|larger|bigger|smaller|cheaper|better|higher|more|less)\b"
    # most of the ratings; nearly all users
    r"|\b(?:most\sof\s(?:the|its|their)|the\s(?:vast\s)?majority\sof"
    r"|(?:nearly|almost|virtually|practically)\s(?:all|none|half)|(?:nearly|almost)\severy\s(?:user|item|film|movie|list|rating|event|row))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bal\.)(?<!\bcf\.)\s+")
_CITED = "\x00"


def typed_numbers(markdown: str) -> list[str]:
    """The decimals and percentages of a text that are neither glued, nor cited, nor code, nor a formula.

    Returns:
        The numbers as they stand in the text, in order.
    """
    return [
        number[0]
        for sentence in _sentences(markdown)
        if _CITED not in sentence
        for number in _NUMBER.finditer(_NAMED.sub(" ", sentence.replace("−", "-")))
    ]


def typed_claims(markdown: str) -> list[str]:
    """The measured claims in words of a text that are neither cited nor code: durations, ratios, shares.

    A number that the run puts in is none of them: "fitted in {glue} s", "{glue} times as large".

    Returns:
        The words as they stand in the text, in order.
    """
    return [
        claim[0]
        for sentence in _sentences(markdown)
        if _CITED not in sentence
        for claim in _CLAIM.finditer(" ".join(sentence.split()))
    ]


def _sentences(markdown: str) -> Iterator[str]:
    for token in _PARSER.parse(markdown):
        if token.type == "inline":
            yield from _SENTENCE_END.split("".join(map(_text, token.children or [])))
        elif token.type in {"fence", "colon_fence"}:
            yield from _directive(token)
        elif token.type.startswith("math_block"):
            yield _formula(token.content)


def _directive(token: Token) -> Iterator[str]:
    """The sentences of a directive: of its title, its body, and the options that a reader gets to see."""
    directive = re.match(r"\{([\w:+-]+)\}\s*(.*)", token.info.strip())
    if directive is None or directive[1] in _CODE:
        if directive and directive[1] == "math":
            yield _formula(token.content)
        return
    yield from _sentences(directive[2])
    lines = token.content.splitlines()
    while lines and (option := re.match(r":([\w-]+):\s*(.*)", lines[0])):
        del lines[0]
        if option[1] in _SPOKEN_OPTIONS:
            yield from _sentences(option[2])
    yield from _sentences("\n".join(lines))


def _text(token: Token) -> str:
    """What a piece of a paragraph adds to the sentence that it stands in."""
    if token.type == "myst_role":
        role = token.meta["name"]
        if role.startswith(("cite", "footcite")):
            return _CITED
        if role == "math":
            return _formula(token.content)
        return (
            "" if role.startswith("glue") or role in {"code", "eq", "kbd", "numref", "ref"} else token.content
        )
    if token.type == "link_open" and is_paper(str(token.attrGet("href"))):
        return _CITED
    if token.type.startswith("math_inline"):
        return _formula(token.content)
    if token.type == "image":
        return token.content
    if token.type == "text":
        return re.sub(r"https?://\S+", "", token.content)
    return " " if token.type in {"softbreak", "hardbreak"} else ""


def _formula(formula: str) -> str:
    """Nothing for a formula with a variable in it; otherwise the numbers that it is made of."""
    letters = _WORDS_IN_MATH.sub(" ", _VARIABLES.sub("x", formula))
    return "" if re.search(r"[a-zA-Z]", letters) else formula.replace("\\%", "%").replace("{,}", ",")
