"""Keep the built pages free of requests to third parties.

MathJax is copied from the installed package ``django-static-mathjax`` instead of being fetched from a content
delivery network, and the assets of Thebe, which names such a network, are taken off every page. Of MathJax's
letters, kinds that no formula of the book uses are left out: they are a fifth of a file that is most of a
page's weight.
"""

from __future__ import annotations

import hashlib
import html
import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

PACKAGE = "django-static-mathjax"
SCRIPT = "mathjax/static/mathjax/es5/tex-svg-full.js"
LICENSE = "mathjax/static/mathjax/LICENSE"
# MathJax 3.2.2 as this package builds it from source: one file, no fonts to fetch.
SHA256 = "214c3da890b16db3d1319684cc04f3fd4e72ea59d5eb3863f256146015fb1783"
# Below the built _static/, where Sphinx looks for scripts, but never in the source's: every script there
# would be added to every page, and a page without mathematics should not load two megabytes.
TARGET = "mathjax/tex-svg-full.js"


class Letters(NamedTuple):
    """A kind of letters that few formulas use.

    Attributes:
        fonts: MathJax's names for the fonts that hold them.
        codes: where they are among the mathematical letters of Unicode, which MathJax's upright font repeats.
        asked: what a formula that uses them holds.
    """

    fonts: tuple[str, ...]
    codes: tuple[range, ...]
    asked: str


LETTERS = (
    Letters(
        ("fraktur", "frakturBold"),
        (range(0x1D504, 0x1D538), range(0x1D56C, 0x1D5A0)),
        r"\\(?:math|text|mathbf)?frak\b",
    ),
    Letters(
        ("sansSerif", "sansSerifBold", "sansSerifItalic", "sansSerifBoldItalic"),
        (range(0x1D5A0, 0x1D670),),
        r"\\(?:math|text|mathbf|sym|symbf)?sf(?:up|it)?\b",
    ),
    Letters(("monospace",), (range(0x1D670, 0x1D6A4),), r"\\(?:math|text|sym)?tt\b|\\verb\b"),
    Letters(("texOldstyle", "texOldstyleBold"), (), r"\\oldstyle\b|\\(?:math|sym)(?:bf)?cal\W*\d"),
)
_FORMULA = re.compile(r'class="math[^>]*>(.*?)</(?:span|div)>', re.DOTALL)


def mathjax_files() -> tuple[Path, Path]:
    """Return the installed MathJax script and its license.

    Raises:
        ExtensionError: the package is not installed, or its script is not the known build of MathJax 3.2.2.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ExtensionError(
            f"{PACKAGE} is not installed; it holds the copy of MathJax that the book serves. "
            "Install the extra 'book' of this project."
        ) from error
    script = Path(str(package.locate_file(SCRIPT)))
    if not script.is_file():
        raise ExtensionError(f"{PACKAGE} {package.version} holds no {SCRIPT}")
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ExtensionError(
            f"{script} is not the known build of MathJax 3.2.2: its SHA-256 is {digest}, expected {SHA256}. "
            f"Install {PACKAGE}==3.2.2.1, or check the new file and renew the hash in {Path(__file__).name}."
        )
    return script, Path(str(package.locate_file(LICENSE)))


def point_to_copy(app: Sphinx, config: Config) -> None:
    """Let pages with mathematics load the copy (``config-inited``)."""
    config.mathjax_path = TARGET


def copy_mathjax(app: Sphinx) -> None:
    """Copy MathJax and its license beside the pages (``builder-inited``)."""
    if app.builder.format != "html":
        return
    script, license_ = mathjax_files()
    target = Path(app.outdir, "_static", TARGET)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(script, target)
    shutil.copyfile(license_, target.with_name("LICENSE"))


def without_letters(script: str, formulas: str) -> str:
    """Return MathJax without the outlines of letters that no formula asks for.

    Args:
        script: MathJax, as the package holds it.
        formulas: all formulas of the book, and the definitions of its macros.

    Raises:
        ExtensionError: the script does not hold such letters where they are expected.
    """
    unused = [
        letters
        for letters in LETTERS
        if not re.search(letters.asked, formulas)
        and not any(ord(char) in codes for char in set(formulas) for codes in letters.codes)
    ]
    codes = {str(code) for letters in unused for codes in letters.codes for code in codes}
    emptied = {font: "" for letters in unused for font in letters.fonts}
    found = re.search(r"AddPaths\)\(\w+\.normal,\{([^}]*)\}", script)
    outlines = re.findall(r'(\d+):("[^"]*")', found[1]) if found else []
    kept = ",".join(f"{code}:{path}" for code, path in outlines if code not in codes)
    for font, paths in {"normal": kept, **emptied}.items():
        # a path holds no backslash and no brace
        script, count = re.subn(rf"(AddPaths\)\(\w+\.{font},)\{{[^}}]*\}}", rf"\1{{{paths}}}", script)
        if count != 1:
            raise ExtensionError(
                f"MathJax holds {count} fonts {font!r}, not one; renew {Path(__file__).name}"
            )
    return script


def lighten_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Write MathJax with the letters that the pages use (``build-finished``)."""
    if error is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    pages = [path for path in root.rglob("*.html") if root / "_static" not in path.parents]
    formulas = [html.unescape(text) for page in pages for text in _FORMULA.findall(page.read_text("utf8"))]
    defined = json.dumps(app.config.mathjax3_config).replace("\\\\", "\\")
    light = without_letters(mathjax_files()[0].read_text("utf8"), "\n".join([*formulas, defined]))
    root.joinpath("_static", TARGET).write_text(light, encoding="utf8")


def _is_thebe(asset: object) -> bool:
    """Tell whether a script or style sheet of the page belongs to Thebe."""
    body = (getattr(asset, "attributes", None) or {}).get("body") or ""
    return "THEBE_JS_URL" in body or "sphinx-thebe" in str(getattr(asset, "filename", None) or asset)


def strip_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Take Thebe's assets off the page (``html-page-context``).

    Jupyter Book loads Thebe always; its address is declared twice, which is a script error on every page.
    """
    for kind in ("script_files", "css_files"):
        context[kind] = [asset for asset in context.get(kind, []) if not _is_thebe(asset)]


def remove_thebe_files(app: Sphinx, error: Exception | None) -> None:
    """Remove the files that no page uses any more (``build-finished``)."""
    if error is None and app.builder.format == "html":
        for name in ("sphinx-thebe.js", "sphinx-thebe.css"):
            Path(app.outdir, "_static", name).unlink(missing_ok=True)


def remove_thebe_config(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Drop the settings that Thebe appends to every page (``doctree-resolved``)."""
    for node in list(doctree.findall(nodes.raw)):
        text = node.astext().strip()
        if "x-thebe-config" in text or text.startswith("<script>kernelName = "):
            node.parent.remove(node)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("config-inited", point_to_copy)
    app.connect("builder-inited", copy_mathjax)
    app.connect("doctree-resolved", remove_thebe_config, priority=900)
    app.connect("html-page-context", strip_thebe, priority=900)
    app.connect("build-finished", remove_thebe_files)
    app.connect("build-finished", lighten_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
