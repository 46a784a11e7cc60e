"""Make pages light: one style sheet, one script, the icons in use, and MathJax only where there are formulas.

The theme and the extensions put ten style sheets, a dozen scripts and all of Font Awesome on every page. When
the pages are written, their local style sheets and scripts are joined into one file each; the icons that the
book uses are cut out of the theme's fonts, a few kilobytes that travel inside the style sheet. What is found
on a page decides, so that a newer theme with other files is bundled as well.

A bundle's first line names its parts. So a page that a later build does not write still takes up a part that
has changed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pydata_sphinx_theme
from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# Read by the search page alone, which has them in its own list.
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js")
OPTIONS = "documentation_options.js"
# Where a script is needed only by pages that hold a certain mark.
ONLY_WITH = {"tex-svg-full.js": 'class="math', "design-tabs.js": "sd-tab-set"}
# Replaced by the icons in the style sheet.
UNUSED = ("scripts/fontawesome.js", "scripts/fontawesome.js.LICENSE.txt", "vendor/fontawesome")

FONTS = Path(pydata_sphinx_theme.__file__).parent.joinpath(
    "theme", "pydata_sphinx_theme", "static", "vendor", "fontawesome", "webfonts"
)
# The style sheet's rules for an icon, and for the font that holds it.
_ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:+before,?)+)\{content:"(\\[0-9a-f]+|.)"\}')
_FONT_RULE = re.compile(r"@font-face\{[^}]*fontawesome[^}]*\}")
_STYLE = re.compile(r'[ \t]*<link\b(?=[^>]*rel="stylesheet")[^>]*\bhref="([^"]+)"[^>]*>\n?')
_SCRIPT = re.compile(r'[ \t]*<script\b[^>]*\bsrc="([^"]+)"[^>]*></script>\n?')
_PRELOAD = re.compile(r'[ \t]*<link\b(?=[^>]*rel="preload")(?=[^>]*as="script")[^>]*>\n?')
_IMPORT = re.compile(r'@import\s+(?:url\()?["\']([^"\']+)["\']\)?\s*;')
_URL = re.compile(r"""url\((["']?)(?!data:|[a-z]+:|/|#)([^"')]+)\1\)""")
_BUNDLE = re.compile(r"(bundle-[0-9a-f]{8}\.(?:css|js))\?v=[0-9a-f]*")


def bundle_name(parts: Sequence[str], kind: str) -> str:
    """Return the name of the bundle of these parts, ``css`` or ``js``; it depends on their names alone."""
    return f"bundle-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:8]}.{kind}"


def local(address: str, page: str) -> str | None:
    """Return the path below the book's root that a page asks for, None for what is elsewhere.

    Args:
        address: as the page writes it.
        page: the page's own path below the root.
    """
    if re.match(r"[a-z]+:|//", address):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), address.partition("?")[0]))


def light_page(text: str, page: str, root: Path) -> tuple[str, list[str], list[str]]:
    """Return a page that asks for bundles, and the parts of its style sheet and of its script.

    Args:
        text: the page as it was written.
        page: its path below the root.
        root: the folder of the pages.
    """
    styles: list[str] = []
    scripts: list[str] = []
    up = posixpath.relpath("_static", posixpath.dirname(page) or ".")

    def style(match: re.Match[str]) -> str:
        path = local(match[1], page)
        if path is None or "bundle-" in path:
            return match[0]
        styles.append(path)
        return "@style@" if len(styles) == 1 else ""

    def script(match: re.Match[str]) -> str:
        path = local(match[1], page)
        if path is None or "bundle-" in path:
            return match[0]
        name = posixpath.basename(path)
        if path == f"_static/{OPTIONS}":  # later scripts of the page need it at once
            return f"<script>{root.joinpath(path).read_text('utf8').strip()}</script>\n"
        if path.removeprefix("_static/") in UNUSED:
            return ""
        if name in SEARCH:
            return deferred(match[0]) if page == "search.html" else ""
        if name in ONLY_WITH:
            return deferred(match[0]) if ONLY_WITH[name] in text else ""
        scripts.append(path)
        return "@script@" if len(scripts) == 1 else ""

    light = _SCRIPT.sub(script, _STYLE.sub(style, _PRELOAD.sub("", text)))
    if ONLY_WITH["tex-svg-full.js"] not in text:
        light = re.sub(r"[ \t]*<script>window\.MathJax = .*?</script>\n?", "", light)
    if styles:
        name = bundle_name(styles, "css")
        light = light.replace("@style@", f'<link rel="stylesheet" href="{up}/{name}?v=" />\n', 1)
    if scripts:
        name = bundle_name(scripts, "js")
        light = light.replace("@script@", f'<script defer src="{up}/{name}?v="></script>\n', 1)
    return light, styles, scripts


def deferred(tag: str) -> str:
    """Return a script's tag that waits for the page to be read: order is kept, and nothing waits for it."""
    return tag if re.search(r"\b(?:defer|async)\b", tag) else tag.replace("<script", "<script defer", 1)


def joined_styles(parts: Iterable[str], root: Path) -> str:
    """Return style sheets as one, to lie in ``_static``: imports taken in, addresses rebased, no comments."""
    whole = []
    for part in parts:
        text = root.joinpath(part).read_text("utf8")
        folder = posixpath.dirname(part)

        def taken_in(match: re.Match[str], folder: str = folder) -> str:
            return joined_styles([posixpath.normpath(posixpath.join(folder, match[1]))], root)

        def rebased(match: re.Match[str], folder: str = folder) -> str:
            path = posixpath.normpath(posixpath.join(folder, match[2]))
            return f"url({posixpath.relpath(path, '_static')})"

        text = re.sub(r"/\*(?!!).*?\*/", "", text, flags=re.DOTALL).replace('@charset "UTF-8";', "")
        # what is taken in has had its own addresses rebased already
        whole.append(_IMPORT.sub(taken_in, _URL.sub(rebased, text)))
    return re.sub(r"\n\s*", "\n", "\n".join(whole))


def joined_scripts(parts: Iterable[str], root: Path) -> str:
    """Return scripts as one.

    A statement before them keeps ``"use strict"`` at the head of one from holding for all.
    """
    texts = [root.joinpath(part).read_text("utf8") for part in parts]
    return ";\n".join(["void 0", *(re.sub(r"//# sourceMappingURL=.*", "", text).strip() for text in texts)])


def icon_classes(texts: Iterable[str]) -> set[str]:
    """Return the names of all icons, such as ``fa-list``, that pages or scripts hold."""
    return {name for text in texts for name in re.findall(r"\bfa-[a-z0-9][\w-]*", text)}


def with_few_icons(sheet: str, used: set[str]) -> str:
    """Return a style sheet that knows and carries only the icons that are used.

    Args:
        sheet: a style sheet with Font Awesome's rules.
        used: the icons' names that pages and scripts hold; those that the sheet's own rules draw are added.
    """

    def rule(match: re.Match[str]) -> str:
        names = [name for name in match[1].split(",") if name.lstrip(".").partition(":")[0] in used]
        return f'{",".join(names)}{{content:"{match[2]}"}}' if names else ""

    faces = _FONT_RULE.findall(sheet)
    if not faces:
        return sheet
    sheet = _FONT_RULE.sub("", _ICON_RULE.sub(rule, sheet))
    drawn = {int(code, 16) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', sheet)}
    drawn |= {ord(char) for char in re.findall("[\ue000-\uf8ff]", sheet)}
    return "".join(small for face in faces if (small := small_face(face, drawn, used))) + sheet


def small_face(face: str, drawn: set[int], used: set[str]) -> str:
    """Return a ``@font-face`` rule with its font cut down and inside it; nothing where no icon is in it.

    Args:
        face: the theme's rule, which names a file.
        drawn: the characters in use.
        used: the names in use. The outlined icons have the same characters as the solid ones.
    """
    name = re.findall(r"([\w-]+)\.ttf", face)[0]
    if "regular" in name and not used & {"fa-regular"}:
        return ""
    font = TTFont(FONTS / f"{name}.ttf", recalcTimestamp=False)
    wanted = drawn & set(font.getBestCmap())
    if not wanted:
        return ""
    options = subset.Options(name_IDs=["*"], layout_features=[], hinting=False, notdef_outline=True)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=wanted)
    cutter.subset(font)
    font.flavor = "woff"
    file = io.BytesIO()
    font.save(file)
    data = base64.b64encode(file.getvalue()).decode()
    return re.sub(r"src:[^}]*", f'src:url(data:font/woff;base64,{data}) format("woff")', face)


def bundle(app: Sphinx, error: Exception | None) -> None:
    """Let all pages ask for bundles, and write these (``build-finished``, when every file is there)."""
    if error is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    static = root / "_static"
    pages = {
        path: path.read_text("utf8") for path in sorted(root.rglob("*.html")) if static not in path.parents
    }
    lists = {path.name: parts_of(path) for path in static.glob("bundle-*.*")}
    light = {}
    for path, text in pages.items():
        light[path], styles, scripts = light_page(text, path.relative_to(root).as_posix(), root)
        lists |= {bundle_name(styles, "css"): styles} if styles else {}
        lists |= {bundle_name(scripts, "js"): scripts} if scripts else {}
    asked = {
        name for text in light.values() for name, *_ in re.findall(r"(bundle-[0-9a-f]{8}\.(css|js))", text)
    }
    for name in lists.keys() - asked:
        (static / name).unlink(missing_ok=True)
    scripts_text = {name: joined_scripts(lists[name], root) for name in asked if name.endswith(".js")}
    used = icon_classes([*light.values(), *scripts_text.values()])
    versions = {}
    for name in sorted(asked):
        body = scripts_text.get(name) or with_few_icons(joined_styles(lists[name], root), used)
        whole = f"/* {' '.join(lists[name])} */\n{body}\n"
        (static / name).write_text(whole, encoding="utf8")
        versions[name] = hashlib.sha256(whole.encode()).hexdigest()[:8]
    for path, text in light.items():
        done = _BUNDLE.sub(lambda match: f"{match[1]}?v={versions[match[1]]}", text)
        if done != pages[path]:
            path.write_text(done, encoding="utf8")
    remove_unused(static)


def parts_of(path: Path) -> list[str]:
    """Return the parts of a bundle that an earlier build wrote."""
    with path.open(encoding="utf8") as file:
        return file.readline().strip("/* \n").split()


def remove_unused(static: Path) -> None:
    """Remove what no page asks for any more: Font Awesome's files, and maps to sources that are not here."""
    gone = [static / name for name in UNUSED] + list(static.glob("scripts/*.map"))
    for path in gone:
        for file in [*path.rglob("*"), path] if path.is_dir() else [path]:
            if file.is_file():
                file.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("build-finished", bundle, priority=850)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
