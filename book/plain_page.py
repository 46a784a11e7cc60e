"""Show a chapter as a host does that knows nothing of the book: CommonMark, tables, MathJax, code, outputs.

``python -m book.plain_page`` writes ``_build/plain/NN_topic.html`` for every chapter, from its executed copy
where there is one, so that a person can look at what Colab and GitHub show. The tests look at the same pages.
"""

import argparse
import html
import sys
from pathlib import Path
from typing import Any

from book._ext.offline_assets import mathjax_files
from book.execute import ROOT, Layout, read_notebook
from book.plain import parser

# As hosts set it: no macros of our own, a paper's width, code in a box.
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<script>MathJax = {{options: {{enableMenu: false}}, startup: {{typeset: true}}}}</script>
<script src="{mathjax}" defer></script>
<style>body {{font: 16px/1.5 sans-serif; max-width: 48rem; margin: 1rem auto; padding: 0 1rem}}
pre {{background: #f4f4f4; padding: .6rem; overflow-x: auto; font-size: .8125rem}}
img, svg {{max-width: 100%; height: auto}}
td, th {{padding: .2rem .6rem; text-align: left}} .hidden {{color: #555; font-size: .8rem}}</style></head>"""


def page(notebook: dict[str, Any], title: str = "") -> str:
    """The HTML of a notebook's plain form.

    Each cell is a ``section`` with its number and its tags, so that what is wrong can be named.
    """
    render = parser().render
    parts = []
    for number, cell in enumerate(notebook["cells"], 1):
        source, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            body = render(source)
        elif cell["metadata"].get("cellView") == "form":  # the code is hidden, its first line is a title
            body = f'<p class="hidden">▸ {html.escape(source.splitlines()[0].partition("@title ")[2])}</p>'
            body += "".join(map(_output, cell.get("outputs", [])))
        else:
            body = f"<pre><code>{html.escape(source)}</code></pre>"
            body += "".join(map(_output, cell.get("outputs", [])))
        parts.append(
            f'<section data-cell="{number}" data-tags="{html.escape(" ".join(tags))}">{body}</section>'
        )
    head = HEAD.format(title=html.escape(title), mathjax=mathjax_files()[0].as_uri())
    return f"{head}<body><article>{''.join(parts)}</article></body></html>"


def _output(output: dict[str, Any]) -> str:
    """An output as a notebook shows it: the richest form that it has."""
    data = {
        kind: "".join(value)
        for kind, value in output.get("data", {}).items()
        if isinstance(value, str | list)
    }
    if output.get("output_type") == "stream":
        return f"<pre>{html.escape(''.join(output['text']))}</pre>"
    if "text/markdown" in data:
        return f'<div class="said">{parser().render(data["text/markdown"])}</div>'
    for kind in ("text/html", "image/svg+xml"):
        if kind in data:
            return f'<div class="output">{data[kind]}</div>'
    return f"<pre>{html.escape(data['text/plain'])}</pre>" if "text/plain" in data else ""


def best_copy(path: Path, layout: Layout) -> dict[str, Any]:
    """A notebook with its outputs where it has been executed, and as it is committed where it has not."""
    copy = layout.executed / path.name
    return read_notebook(copy if copy.exists() else path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = argparse.ArgumentParser(
        prog="python -m book.plain_page", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("files", nargs="*", type=Path, help="notebooks (default: all)")
    layout = Layout(ROOT)
    folder = ROOT / "_build" / "plain"
    folder.mkdir(parents=True, exist_ok=True)
    for path in options.parse_args(arguments).files or layout.sources():
        made = folder / f"{path.stem}.html"
        made.write_text(page(best_copy(path, layout), path.stem), encoding="utf8")
        print(made.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
