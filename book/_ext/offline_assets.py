"""Keep the built pages free of requests to third parties.

MathJax is copied from the installed package ``django-static-mathjax`` instead of being fetched from a content
delivery network, and the assets of Thebe, which names such a network, are taken off every page.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

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
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(script, target)
    shutil.copyfile(license_, target.with_name("LICENSE"))


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
    return {"parallel_read_safe": True, "parallel_write_safe": True}
