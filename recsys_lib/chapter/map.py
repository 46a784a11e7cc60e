"""A map of vectors in two dimensions, in which a reader can search, point at items and walk to neighbors.

The figure is one piece of HTML with its data, its style, its picture and its script inside. It asks no other
host for anything. Where no script runs (on paper, on GitHub) the picture stands there, with the most popular
items named. Only numpy is needed. The two dimensions come from elsewhere, for example scikit-learn's `TSNE`.
"""

import base64
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from recsys_lib.chapter.show import PALETTE

__all__ = ["VectorMap"]

_MOST = 5_000  # points; more are neither told apart nor light enough for a page
_WIDTH, _EDGE = 1000, 28  # of the drawing and of its margin, in its own units
_RADIUS = (5, 15)  # of the smallest and the largest marker
_LETTER = 0.62  # mean width of a letter, as a part of the font size; real ones are a little narrower
# The labels of a wide drawing and of one on a phone: class, font size, how many, longest text.
_LABELS = (("wide", 18, 12, 34), ("narrow", 32, 6, 24))
# One marker for each color, all of about the same area, in tenths of the radius: where the path starts, seen
# from the point, and how it goes on.
_SHAPES = (
    (0, -10, "a10 10 0 11-2 0z"),  # circle
    (-9, -9, "h18v18h-18z"),  # square
    (0, -12, "l12 21h-24z"),  # triangle
    (0, -13, "l13 13-13 13-13-13z"),  # diamond
    (0, 12, "l12-21h-24z"),  # triangle that stands on its tip
    (0, -14, "l8 24-21-15h26l-21 15z"),  # star
)
_FLAGS = " 0 11"  # of the circle's arc, no lengths


class _Label(NamedTuple):
    kind: str  # "wide" or "narrow"
    item: int
    x: int
    y: int
    anchor: str  # of the text: start, middle or end
    text: str


class VectorMap:
    """Items on a plane, to search and to point at; a notebook shows it when it is a cell's value.

    ::

        plane = TSNE(metric="cosine", random_state=0).fit_transform(items)  # (n, 2)
        near, _ = top_neighbors(items, 5)  # (n, 5), in all dimensions
        VectorMap(
            plane, titles, caption="Films by taste.", alternative="...", groups=genres, neighbors=near
        )

    A reader types a part of a label: the items that match are marked, counted and listed. An item that is
    pointed at, tapped, or reached in that list by keyboard says its label, its group and its neighbors.
    A group is told by color and by shape; a button for each hides and shows it.

    Args:
        points: Where the items are, (n, 2), finite, any unit; both axes are drawn on the same scale.
        labels: What each item is called, n texts. They are shown as they are, never as markup.
        caption: What stands below the map.
        alternative: What is to be seen, for those who do not see it.
        groups: The group of each item, n texts of at most six kinds; None draws all items alike.
        order: The kinds in the order of the legend, colors and shapes; None puts the largest first.
        sizes: How large each item is drawn, n numbers of 0 or more, such as its number of ratings: the area
            of a marker grows with it. Large items are named first and are listed first.
        neighbors: The items nearest to each item, nearest first, (n, k) indices on the CPU, -1 where there is
            none; taken in the full space, since a plane keeps few neighborhoods whole. An item is no neighbor
            of its own.
        search: What is written before the search box.
        name: The figure's id is ``fig-NAME``, to link to. Nothing else on the page has an id, so that
            several maps stand on one page.

    Raises:
        TypeError: A label or a group is no text.
        ValueError: There is no item or there are more than 5,000, lengths or shapes do not fit each other,
            a value is not finite, an index is not there or is the item's own, there are more than six groups,
            the caption or the alternative text is empty, or the name is no id.
    """

    def __init__(
        self,
        points: ArrayLike,
        labels: Sequence[str],
        *,
        caption: str,
        alternative: str,
        groups: Sequence[str] | None = None,
        order: Sequence[str] | None = None,
        sizes: ArrayLike | None = None,
        neighbors: ArrayLike | None = None,
        search: str = "Search the map:",
        name: str = "map",
    ) -> None:
        n = len(labels)
        if not 1 <= n <= _MOST:
            raise ValueError(f"a map holds 1 to {_MOST:,} items, got {n:,}; leave out the least popular")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"name={name!r} is part of an id: use lower-case letters, digits and hyphens")
        for what, text in (("caption", caption), ("alternative", alternative)):
            if not text.strip():
                raise ValueError(f"{what} is empty; say what the map shows")
        plane = np.asarray(points, dtype=np.float64)  # (n, 2)
        if plane.shape != (n, 2):
            raise ValueError(f"points have the shape {plane.shape}; for {n:,} labels it must be ({n}, 2)")
        if not np.isfinite(plane).all():
            raise ValueError(f"the point of item {_first(~np.isfinite(plane))} is not finite")
        for what, texts in (("label", labels), ("group", () if groups is None else groups)):
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise TypeError(f"the {what} of item {i} is {text!r}; it must be a text")
        self.labels = list(labels)
        self.caption, self.alternative, self.search, self.name = caption, alternative, search, name
        self.kinds, self.group = _grouped(groups, order, n)
        size = _sized(sizes, n)  # (n,)
        self.radius = _radii(size)
        self.rank = np.argsort(-size, kind="stable")  # (n,), large items first
        self.neighbors = _checked_neighbors(neighbors, n)
        self.xy, self.height = _placed(plane)
        self.named = [label for kind in _LABELS for label in self._labels(*kind)]

    def __repr__(self) -> str:
        kinds = f" in {len(self.kinds)} groups" if self.kinds else ""
        return f"VectorMap: {len(self.labels):,} items{kinds}"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """The figure as HTML that needs nothing else."""
        # The script gets the items in order of size, and needs no sizes then to put large ones first.
        place = np.append(np.argsort(self.rank), -1)  # (n + 1,), of each item, and -1 of no item
        data = {
            "labels": [self.labels[i] for i in self.rank],
            "kinds": self.kinds,
            "group": _packed(self.group[self.rank], "u1"),
            "xy": _packed(self.xy[self.rank], "<u2"),
            "radius": _packed(self.radius[self.rank], "u1"),
            "near": _packed(place[self.neighbors][self.rank], "<i2"),
            "k": self.neighbors.shape[1],
            "height": self.height,
            "named": [label._replace(item=int(place[label.item])) for label in self.named],
            "shapes": [f"m{dx} {dy}{path}" for dx, dy, path in _SHAPES[: max(1, len(self.kinds))]],
            "colors": PALETTE[: max(1, len(self.kinds))],
            "search": self.search,
        }
        picture = base64.b64encode(self.to_svg().encode()).decode()
        parts = {
            "NAME": self.name,
            "ALT": html.escape(self.alternative),
            "CAPTION": html.escape(self.caption),
            "PICTURE": f"data:image/svg+xml;base64,{picture}",
            # No "<" may stand in the data: "</script>" would end them, and "<!--" hide what follows.
            "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        }
        return re.sub("@(NAME|ALT|CAPTION|PICTURE|DATA)@", lambda match: parts[match[1]], _PAGE)

    def to_svg(self) -> str:
        """The map as a picture: an SVG document with the legend and the names of some items."""
        legend, below = self._legend()
        size = f'viewBox="0 0 {_WIDTH} {self.height + below}" width="{_WIDTH}" height="{self.height + below}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">',
            # a picture's own width decides here, so that its letters stay legible on a phone
            "<style>.narrow{display:none}@media(max-width:480px){.wide{display:none}.narrow{display:inline}}"
            "text{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}</style>",
            '<path fill="#fff" d="M0 0h9999v9999H0z"/>',
        ]
        for kind in range(max(1, len(self.kinds))):
            own = [int(i) for i in self.rank if self.group[i] == kind]
            path = "".join(_marker(kind, self.xy[i, 0], self.xy[i, 1], self.radius[i]) for i in own)
            parts.append(f'<path d="{path}" fill="{PALETTE[kind]}" stroke="#fff" stroke-width=".6"/>')
        for name, letters, *_ in _LABELS:
            parts.append(f'<g class="{name}" font-size="{letters}">')
            parts += [
                f'<text x="{label.x}" y="{label.y}" text-anchor="{label.anchor}">{_xml(label.text)}</text>'
                for label in self.named
                if label.kind == name
            ]
            parts.append("</g>")
        return "".join([*parts, legend, "</svg>"])

    def _legend(self) -> tuple[str, int]:
        """The legend of the picture, below the map, and its height."""
        size, row = 22, 34
        x, y, parts = _EDGE, self.height + size, []
        for kind, whole in enumerate(self.kinds):
            text = _cut(whole, 40)
            width = 30 + _text_width(text, size) + 24
            if x > _EDGE and x + width > _WIDTH:
                x, y = _EDGE, y + row
            marker = _marker(kind, x + 8, y - 8, 9)
            parts.append(f'<path d="{marker}" fill="{PALETTE[kind]}"/>')
            parts.append(f'<text x="{x + 26}" y="{y}" font-size="{size}">{_xml(text)}</text>')
            x += round(width)
        return "".join(parts), (y - self.height + 14 if parts else 0)

    def _labels(self, kind: str, size: int, most: int, longest: int) -> list[_Label]:
        """Names for large items far from each other, at places where none covers another one."""
        found: list[_Label] = []
        boxes = np.empty((0, 4))  # left, top, right, bottom
        anchors = np.empty((0, 2))
        for apart in (0.22 * _WIDTH, 0.11 * _WIDTH, 0.0):  # as few as that stand closer only if need be
            for item in map(int, self.rank):
                if len(found) == most:
                    return found
                at = self.xy[item].astype(float)
                if (np.hypot(*(anchors - at).T) <= apart).any():
                    continue
                if apart and len(self.labels[item]) > longest:
                    continue  # cut only if there are no shorter ones
                text = _cut(self.labels[item], longest)
                free = [
                    (_covered(box, self.xy), place, box, _Label(kind, item, *spot, text))
                    for place, (box, spot) in enumerate(_places(at, int(self.radius[item]), text, size))
                    if self._inside(box) and not _overlaps(box, boxes).any()
                ]
                if text and free:
                    *_, box, label = min(free, key=lambda one: one[:2])
                    found.append(label)
                    boxes, anchors = np.vstack([boxes, box]), np.vstack([anchors, at])
        return found

    def _inside(self, box: np.ndarray) -> bool:
        return bool(box[0] >= 2 and box[1] >= 2 and box[2] <= _WIDTH - 2 and box[3] <= self.height - 2)


def _first(wrong: np.ndarray) -> int:
    """The first item of which something is wrong, from an array with one row per item."""
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])


def _grouped(
    groups: Sequence[str] | None, order: Sequence[str] | None, n: int
) -> tuple[list[str], np.ndarray]:
    """The kinds in order, and the number of each item's kind, (n,)."""
    if groups is None:
        if order is not None:
            raise ValueError("order is the order of groups, and there are no groups")
        return [], np.zeros(n, dtype=np.int64)
    if len(groups) != n:
        raise ValueError(f"there are {n:,} labels and {len(groups):,} groups; each item needs one of both")
    counted = Counter(groups)
    kinds = list(order) if order is not None else sorted(counted, key=lambda kind: (-counted[kind], kind))
    if len(kinds) > len(PALETTE):
        raise ValueError(
            f"there are {len(kinds)} groups and {len(PALETTE)} colors that all readers can tell apart; "
            "make one group of the small ones"
        )
    if len(set(kinds)) < len(kinds) or not counted.keys() <= set(kinds):
        raise ValueError(f"order={kinds} must name each of the groups {sorted(counted)} once")
    number = {kind: i for i, kind in enumerate(kinds)}
    return kinds, np.array([number[kind] for kind in groups])  # (n,)


def _sized(sizes: ArrayLike | None, n: int) -> np.ndarray:
    size = np.full(n, 0.0) if sizes is None else np.asarray(sizes, dtype=np.float64)  # (n,)
    if size.shape != (n,):
        raise ValueError(f"sizes have the shape {size.shape}; for {n:,} labels it must be ({n},)")
    wrong = ~(np.isfinite(size) & (size >= 0))
    if wrong.any():
        raise ValueError(f"the size of item {_first(wrong)} is {size[_first(wrong)]}; it must be 0 or more")
    return size


def _radii(size: np.ndarray) -> np.ndarray:
    """The radius of each marker in units of the drawing, (n,): its square grows with the size."""
    least, most = _RADIUS
    if size.min() == size.max():
        return np.full(len(size), 7)
    part = size / size.max()  # (n,)
    return np.sqrt(least**2 + (most**2 - least**2) * part).round().astype(np.int64)  # (n,)


def _checked_neighbors(neighbors: ArrayLike | None, n: int) -> np.ndarray:
    if neighbors is None:
        return np.zeros((n, 0), dtype=np.int64)
    near = np.asarray(neighbors)  # (n, k)
    if near.ndim != 2 or len(near) != n or near.dtype.kind not in "iu":
        raise ValueError(
            f"neighbors have the shape {near.shape} and the type {near.dtype}; "
            f"for {n:,} labels they must be ({n}, k) whole numbers"
        )
    wrong = (near < -1) | (near >= n)
    if wrong.any():
        raise ValueError(f"a neighbor of item {_first(wrong)} is none of the items 0 to {n - 1}, nor -1")
    own = near == np.arange(n)[:, None]
    if own.any():
        raise ValueError(f"item {_first(own)} is among its own neighbors; leave the item itself out")
    return near


def _placed(plane: np.ndarray) -> tuple[np.ndarray, int]:
    """The points in units of the drawing, (n, 2), y pointing down, and the drawing's height."""
    low, high = plane.min(0), plane.max(0)
    span = high - low  # (2,)
    inner = _WIDTH - 2 * _EDGE
    tall = inner * (span[1] / span[0] if span[0] > 0 else 1.0)
    height = round(float(np.clip(tall, 400, 800))) + 2 * _EDGE
    room = np.array([inner, height - 2 * _EDGE])  # (2,)
    unit = np.divide(room, span, out=np.full(2, np.inf), where=span > 0).min()
    offset = (plane - (low + high) / 2) * (unit if np.isfinite(unit) else 0.0)  # (n, 2)
    xy = np.array([_WIDTH / 2, height / 2]) + offset * [1, -1]  # (n, 2)
    return xy.round().astype(np.int64), height


def _packed(values: np.ndarray, kind: str) -> str:
    """Whole numbers of one or two bytes each, in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()


def _marker(kind: int, x: float, y: float, radius: int) -> str:
    """The path of one marker, in whole units, which keeps the picture light."""
    part = radius / 10
    dx, dy, path = _SHAPES[kind]
    scaled = re.sub(rf"{_FLAGS}|-?\d+", lambda m: m[0] if m[0] == _FLAGS else f"{int(m[0]) * part:.0f}", path)
    return f"M{x + dx * part:.0f} {y + dy * part:.0f}{scaled}"


def _xml(text: str) -> str:
    """Escaped, and without the control characters that no XML document may hold."""
    return html.escape(
        re.sub("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]", "\ufffd", text)
    )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _text_width(text: str, size: int) -> float:
    """An upper estimate; a letter of East Asia is as wide as it is high."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else _LETTER for c in text)


def _places(
    at: np.ndarray, radius: int, text: str, size: int
) -> list[tuple[np.ndarray, tuple[int, int, str]]]:
    """Where a label may stand around its marker: the box that it takes, and x, y and anchor of the text."""
    x, y = float(at[0]), float(at[1])
    wide, gap = _text_width(text, size), radius + 4
    up, down = 0.85 * size, 0.3 * size  # what a line takes above and below its base
    places = []
    spots = (
        (x + gap, y + size / 3, "start"),
        (x - gap, y + size / 3, "end"),
        (x, y - gap - down, "middle"),
        (x, y + gap + up, "middle"),
    )
    for left, base, anchor in spots:
        spot = (round(left), round(base), anchor)
        start = spot[0] - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        places.append((np.array([start, spot[1] - up, start + wide, spot[1] + down]), spot))
    return places


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which of the boxes (m, 4) share an area with this one, (m,), a gap of two units included."""
    apart = (
        (boxes[:, 0] > box[2] + 2)
        | (boxes[:, 2] < box[0] - 2)
        | (boxes[:, 1] > box[3] + 2)
        | (boxes[:, 3] < box[1] - 2)
    )
    return ~apart


def _covered(box: np.ndarray, xy: np.ndarray) -> int:
    """How many points a label would cover."""
    inside = (xy >= box[:2]) & (xy <= box[2:])  # (n, 2)
    return int(inside.all(1).sum())


_PAGE = """
<figure id="fig-@NAME@" class="vector-map">
<style>
.vector-map { margin: 1rem 0; text-align: start; }
.vector-map img, .vector-map svg.map { display: block; width: 100%; max-width: 45rem; height: auto; }
.vector-map svg.map { cursor: crosshair; }
.vector-map.live img { display: none; }
.vector-map svg.map text { font: 18px sans-serif; fill: #000; paint-order: stroke;
  stroke: #fff; stroke-width: 4px; stroke-linejoin: round; pointer-events: none; }
.vector-map .narrow { display: none; }
@media (max-width: 480px) {
  .vector-map svg.map text { font-size: 32px; }
  .vector-map .wide { display: none; }
  .vector-map .narrow { display: inline; }
}
.vector-map .off, .vector-map .searching .name { display: none; }
.vector-map .searching .item:not(.found) { opacity: .12; }
.vector-map .item { stroke-width: .5px; }
.vector-map .found { stroke: #000; stroke-width: 1.5px; }
.vector-map .ring { fill: none; stroke: #000; stroke-width: 4px; }
.vector-map .link { stroke: #000; stroke-width: 2px; }
.vector-map .pointer { pointer-events: none; }
.vector-map .choices { display: flex; flex-wrap: wrap; align-items: center;
  gap: .4rem .6rem; margin: .5rem 0; }
.vector-map .choices:empty { display: none; }
.vector-map .neighbors { align-content: start; min-height: 5rem; }
.vector-map label { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .5rem; margin: 0; }
.vector-map .live-part p { margin: .5rem 0; min-height: 1.5em; overflow-wrap: anywhere; }
.vector-map input, .vector-map button { font: inherit; max-width: 100%; min-height: 2.2rem;
  padding: .2rem .6rem; color: var(--pst-color-text-base, CanvasText); text-align: start;
  background: var(--pst-color-background, Canvas); border: 1px solid currentColor; border-radius: .3rem;
  overflow-wrap: anywhere; }
.vector-map button[aria-pressed="false"] { text-decoration: line-through; border-style: dashed; }
.vector-map button[hidden] { display: none; }
.vector-map button svg { width: 1em; height: 1em; margin-inline-end: .4em; vertical-align: -.1em; }
.vector-map .live-part, .vector-map figcaption { font-size: .9rem; }
@media screen {
  html[data-theme="dark"] .vector-map :is(img, svg), html[theme="dark"] .vector-map :is(img, svg),
  body[data-jp-theme-light="false"] .vector-map :is(img, svg), body.vscode-dark .vector-map :is(img, svg)
  { filter: invert(.92) hue-rotate(180deg); }
}
@media print {
  .vector-map.live img { display: block; }
  .vector-map .live-part { display: none; }
}
</style>
<img src="@PICTURE@" width="720" alt="@ALT@">
<figcaption>@CAPTION@</figcaption>
<script type="application/json">@DATA@</script>
<script>
// Each map on the page is set up by the first script that finds it complete, so no map needs ids.
for (const figure of document.querySelectorAll("figure.vector-map:not(.live)")) {
  const source = figure.querySelector('script[type="application/json"]');
  if (!source) continue;
  figure.classList.add("live");
  const data = JSON.parse(source.textContent);
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const shorts = (text, Kind) => new Kind(bytes(text).buffer);
  const xy = shorts(data.xy, Uint16Array), near = shorts(data.near, Int16Array);
  const group = bytes(data.group), radius = bytes(data.radius);
  const items = [...data.labels.keys()];  // large ones first
  const neighbors = i => [...near.subarray(i * data.k, (i + 1) * data.k)].filter(j => j >= 0);
  const html = (parent, name, attributes = {}, text) => {
    const element = document.createElement(name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const draw = (parent, name, attributes = {}, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const look = kind => ({d: data.shapes[kind], fill: data.colors[kind]});
  // What is marked is never so small that its color cannot be told.
  const place = (i, least = 0) =>
    `translate(${xy[2 * i]} ${xy[2 * i + 1]})scale(${Math.max(radius[i], least) / 10})`;

  const part = html(figure, "div", {class: "live-part"});
  figure.prepend(part);
  const legend = html(part, "div", {class: "choices"});
  if (data.kinds.length) {
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", "Groups shown");
  }
  const label = html(part, "label", {}, data.search);
  const input = html(label, "input", {type: "search", autocomplete: "off", spellcheck: "false"});
  const status = html(part, "p", {class: "status", "aria-live": "polite"});
  const box = {viewBox: `0 0 1000 ${data.height}`, role: "img", class: "map"};
  const alternative = figure.querySelector("img").alt;
  const svg = draw(part, "svg", {...box, "aria-label": alternative});
  const matches = html(part, "div", {class: "choices matches"});
  const says = html(part, "p", {class: "says", "aria-live": "polite"});
  const walk = html(part, "div", {class: "choices neighbors"});

  draw(svg, "path", {d: "M0 0h9999v9999H0z", fill: "#fff"});
  const links = draw(svg, "g"), points = draw(svg, "g"), marks = [];
  for (const i of items) {
    const line = {class: "item", stroke: "#fff", "vector-effect": "non-scaling-stroke"};
    marks[i] = draw(points, "path", {...look(group[i]), transform: place(i), ...line});
  }
  const names = data.named.map(([kind, item, x, y, anchor, text]) => {
    const at = {class: "name", x, y, "text-anchor": anchor};
    return [item, draw(draw(svg, "g", {class: kind}), "text", at, text)];
  });
  const pointer = draw(svg, "g", {class: "pointer"});

  const more = data.k ? " and those of its neighbors" : "";
  const hint = `Point at an item, tap it or search for it to read its name${more}.`;
  const off = new Set();
  const shown = i => !off.has(group[i]);
  let current = null;
  const point = i => {
    current = i;
    pointer.replaceChildren();
    links.replaceChildren();
    const others = i === null ? [] : neighbors(i);
    buttons.forEach((button, place) => {
      button.hidden = place >= others.length;
      button.textContent = button.hidden ? "" : data.labels[others[place]];
    });
    says.textContent = hint;
    if (i === null) return;
    const [x, y] = [xy[2 * i], xy[2 * i + 1]];
    for (const j of others) {
      draw(links, "path", {class: "link", d: `M${x} ${y}L${xy[2 * j]} ${xy[2 * j + 1]}`});
      const line = {class: "found", "vector-effect": "non-scaling-stroke"};
      draw(pointer, "path", {...look(group[j]), transform: place(j, 10), ...line});
    }
    draw(pointer, "circle", {class: "ring", cx: x, cy: y, r: radius[i] + 5});
    const side = x < 300 ? ["start", -1] : x > 700 ? ["end", 1] : ["middle", 0];
    const high = y < 60 ? y + radius[i] + 36 : y - radius[i] - 14;
    const at = {x: x + side[1] * radius[i], y: high, "text-anchor": side[0]};
    const title = data.labels[i], short = title.length > 34 ? title.slice(0, 33) + "\u2026" : title;
    draw(pointer, "text", at, short);
    const kind = data.kinds.length ? ` (${data.kinds[group[i]]})` : "";
    const ends = others.length ? ". Nearest in all dimensions:" : "";
    says.textContent = `${title}${kind}${ends}`;
  };
  const buttons = Array.from({length: data.k}, (_, place) => {
    const button = html(walk, "button", {type: "button", hidden: ""});
    button.addEventListener("click", () => {
      point(neighbors(current)[place]);
      // what has the focus may have lost its place: there are fewer neighbors now
      if (button.hidden) (buttons[0].hidden ? input : buttons[0]).focus();
    });
    return button;
  });

  point(null);

  const plain = text => text.normalize("NFD").replace(/\\p{M}/gu, "").toLowerCase();
  const plainLabels = data.labels.map(plain);
  const most = 8;
  let marked = [];
  const find = () => {
    const query = plain(input.value.trim());
    const found = query ? items.filter(i => shown(i) && plainLabels[i].includes(query)) : [];
    svg.classList.toggle("searching", query !== "");
    for (const i of marked) {
      marks[i].classList.remove("found");
      marks[i].setAttribute("transform", place(i));
    }
    marked = [...found].reverse();
    for (const i of marked) {
      marks[i].classList.add("found");
      marks[i].setAttribute("transform", place(i, 10));
      points.append(marks[i]);  // above those that do not match
    }
    const count = found.length === 1 ? "1 match" : `${found.length || "No"} matches`;
    const listed = found.length > most ? `; the first ${most} are listed` : "";
    const hidden = off.size ? " in the groups shown" : "";
    status.textContent = query ? `${count}${hidden}${listed}.` : "";
    matches.replaceChildren();
    for (const i of found.slice(0, most)) {
      const button = html(matches, "button", {type: "button"}, data.labels[i]);
      button.addEventListener("focus", () => point(i));
      button.addEventListener("click", () => point(i));
    }
  };
  input.addEventListener("input", find);
  part.addEventListener("keydown", event => {
    if (event.key === "Escape") {
      if ([matches, walk].some(list => list.contains(document.activeElement))) input.focus();
      input.value = "";
      find();
      point(null);
    }
    event.stopPropagation();  // a notebook would take single letters for commands
  });

  data.kinds.forEach((kind, number) => {
    const button = html(legend, "button", {type: "button", "aria-pressed": "true"});
    const sign = draw(button, "svg", {viewBox: "-15 -15 30 30", "aria-hidden": "true"});
    draw(sign, "path", look(number));
    button.append(kind);
    button.addEventListener("click", () => {
      off.has(number) ? off.delete(number) : off.add(number);
      button.setAttribute("aria-pressed", String(!off.has(number)));
      for (const i of items) marks[i].classList.toggle("off", !shown(i));
      for (const [item, name] of names) name.classList.toggle("off", !shown(item));
      if (current !== null && !shown(current)) point(null);
      find();
    });
  });

  const closest = (event, reach) => {
    const seen = svg.getBoundingClientRect(), scale = 1000 / seen.width;
    const [x, y] = [(event.clientX - seen.left) * scale, (event.clientY - seen.top) * scale];
    let best = null, least = reach * scale;
    for (const i of items) {
      const far = Math.max(0, Math.hypot(xy[2 * i] - x, xy[2 * i + 1] - y) - radius[i] / 2);
      if (shown(i) && far < least) [best, least] = [i, far];
    }
    return best;
  };
  svg.addEventListener("pointermove", event => {
    const i = event.pointerType === "mouse" ? closest(event, 10) : null;
    if (i !== null && i !== current) point(i);
  });
  svg.addEventListener("click", event => point(closest(event, 24)));
}
</script>
</figure>
"""
