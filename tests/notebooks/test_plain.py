"""Chapters hold plain Markdown, cell by cell; and the check that says so can fail."""

import nbformat
import pytest

from book import papers
from book.notebooks import notebook_files, tags
from book.plain import heading_problems, plain_problems

CELLS = [
    pytest.param(cell, id=f"{path.stem}, cell {number}")
    for path in notebook_files()
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, 1)
    if cell.cell_type == "markdown"
]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_reads_the_same_everywhere(cell):
    found = [*plain_problems(cell.source), *heading_problems(cell.source, tags(cell))]
    assert not found, f"{cell.source[:60]!r}: {found}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It is {glue:text}`x:.3f`.", "a role: {glue:text}"),
        ("As {cite}`x` says", "a role: {cite}"),
        ("- in a list, {numref}`fig-x`", "a role: {numref}"),
        ("| {math}`x` |\n|---|", "a role: {math}"),
        ("```{note}\nx\n```", "a directive: {note}"),
        (":::{note}\nx\n:::", "a directive: :::"),
        ("(a-label)=\n# Title", "a label"),
        ("{{ value }}", "a substitution"),
        ("+++", "a block break"),
        ("% hidden", "a comment"),
        ("<!-- hidden -->", "an HTML comment"),
        ("term\n: what it is", "a definition list"),
        ("[text](#there){.red}", "an attribute"),
        ("{#here}\ntext", "an attribute"),
        ("text[^1]", "a footnote"),
        ("~~no~~", "struck-out"),
        ("<div>x</div>", "HTML that not every host shows: <div>"),
        ("a <span>b</span>", "HTML that not every host shows: <span>"),
        ("![a](b.png)", "an image: a"),
        ("\\begin{align}x\\end{align}", "a formula without dollars"),
        ("where \\(x\\) is", "a formula without dollars"),
        ("where $ x $ is", "a formula that not every host sees"),
        ("$\\vect{x}$", "a macro that MathJax does not know: \\vect"),
        ("$$\n\\items_u\n$$", "a macro that MathJax does not know: \\items"),
        ("[A](https://doi.org/10.1/unknown)", "https://doi.org/10.1/unknown leads to a paper"),
        (
            "> [A](https://openreview.net/forum?id=unknown)",
            "leads to a paper that book/references.bib does not",
        ),
    ],
)
def test_what_some_host_would_not_show_is_found(text, message):
    assert any(message in problem for problem in plain_problems(text)), plain_problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "# Title\n\nWords, **bold** and *italic*, `{code}`, a set {a, b}, 5 %.",
        "```python\nx = {1}  # ::: {cite}`x` $ x $\n```",
        "| a | b |\n|---|--:|\n| $x_1$ | `y` |",
        "$x$, $\\mathbf{p}_u$ and\n\n$$\n\\begin{aligned}x &= \\frac{a}{b} \\\\ y &< 2\\end{aligned}\n$$",
        "<details>\n<summary>The answer</summary>\n\nIt *falls*.\n\n</details>",
        "[chapter 4](04_bpr.ipynb), [there](#fig-x), [term](../book/notation.md#term-x), <https://a.org>",
        "[BERT4Rec](https://doi.org/10.1145/3357384.3357895)",
        "ratios: 3:1 (see above) = fine",
    ],
)
def test_plain_markdown_is_let_through(text):
    assert plain_problems(text) == []


@pytest.mark.parametrize(
    ("source", "tags", "good"),
    [
        ("### Exercise: T\n\n*Easy.* Do.", ["exercise"], True),
        ("### Exercise: T\n\nDo.", ["exercise"], False),
        ("### Exercise: T\n\nDo. *Easy.*", ["exercise"], False),
        ("## Exercise", ["exercise"], False),
        ("### Exercise: T\n\n*Hard.* Do.\n\n```python\n# a comment\n```", ["exercise"], True),
        ("### Exercise: T\n\n*Hard.* Do.\n\n#### Hint", ["exercise"], False),
        ("### A guess\n\nWhich?", ["guess"], True),
        ("Which?\n\n## Next", ["guess"], False),
        ("One\n\n## Two", [], True),
    ],
)
def test_headings_of_boxes(source, tags, good):
    assert (heading_problems(source, tags) == []) is good


# ---- which paper a link leads to ----

BIB = """
@misc{a, author={A. A}, title={A}, year={2000}, doi={10.1145/3357384.3357895}, eprint={1904.06690}}
@misc{b, author={B. B}, title={B}, year={2000}, doi={10.18653/v1/N19-1423}}
@misc{c, author={C. C}, title={C}, year={2000}, url={https://www.jmlr.org/papers/v11/c.html}}
@misc{d, author={D. D}, title={D}, year={2000}, doi={10.48550/arXiv.2002.10957}}
"""


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("https://doi.org/10.1145/3357384.3357895", "a"),
        ("http://dx.doi.org/10.1145/3357384.3357895", "a"),
        ("https://dl.acm.org/doi/abs/10.1145/3357384.3357895", "a"),
        ("https://arxiv.org/abs/1904.06690", "a"),
        ("https://arxiv.org/pdf/1904.06690v2.pdf", "a"),
        ("https://doi.org/10.18653/v1/n19-1423", "b"),
        ("https://aclanthology.org/N19-1423/", "b"),
        ("https://aclanthology.org/N19-1423.pdf", "b"),
        ("http://jmlr.org/papers/v11/c.html", "c"),
        ("https://arxiv.org/abs/2002.10957v1", "d"),
        ("https://arxiv.org/abs/1904.0669", None),
        ("https://openreview.net/forum?id=c", None),
    ],
)
def test_a_paper_is_found_however_its_address_is_spelled(address, key, tmp_path):
    references = tmp_path / "references.bib"
    references.write_text(BIB)
    assert papers.key_of(address, references) == key
    assert papers.is_paper(address, references)
    assert papers.is_unknown(address, references) is (key is None)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/10.1145/3357384.3357895", "#fig-a", "04_bpr.ipynb", "", "mailto:a@doi.org"],
)
def test_other_links_are_no_papers(address):
    assert not papers.is_paper(address)
    assert papers.key_of(address) is None


def test_every_paper_of_the_bibliography_can_be_linked():
    from pybtex.database import parse_file

    entries = parse_file(str(papers.REFERENCES)).entries
    assert set(papers.entries().values()) == set(entries)
