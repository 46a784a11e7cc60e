"""Look into a transformer: choose a text, a layer and a head, and see which token looks at which.

The figure is one piece of HTML with its data, its style and its script inside. It asks no other host for
anything, so it works in the built book, in a notebook, and in a page that was saved. Only numpy is needed, so
a trace of any library can be shown.
"""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["AttentionExplorer"]

_STEPS = 200  # a weight is kept in one byte, as a multiple of 1/200; so it is off by 1/400 at most


class AttentionExplorer:
    """Attention weights to look at, text by text; a notebook shows it when it is a cell's value.

    ::

        weights = encoder.trace(ids).weights[:, 0].cpu()  # (L, H, T, T)
        AttentionExplorer(["Toy Story (1995)"], [tokens], [weights], presets={"previous token": (0, 2)})

    The page says in words what the drawing shows, for those who do not see it.

    Args:
        titles: What the reader chooses from, N texts.
        tokens: The tokens of each text, N lists; text n has T_n of them.
        weights: N arrays (L, H, T_n, T_n) with values from 0 to 1, on the CPU: how much query i looks at
            key j.
        presets: Buttons: what is written on each, and the layer and head that it chooses, counted from 0. The
            first one is shown at the start; without any, layer 0 and head 0.
        go_to: What is written before the buttons.
        caption: What stands below the drawing.
        name: Starts every id on the page, so that two explorers can stand on one page.

    Raises:
        ValueError: There is no text, the lists are of unlike length, the shapes do not fit each other, a
            weight is not from 0 to 1, a preset is not there, or the name is no id.
    """

    def __init__(
        self,
        titles: Sequence[str],
        tokens: Sequence[Sequence[str]],
        weights: Sequence[ArrayLike],
        *,
        presets: Mapping[str, tuple[int, int]] | None = None,
        go_to: str = "Go to:",
        caption: str = "Each row sums to one. The sentence above says what each token looks at most.",
        name: str = "attention",
    ) -> None:
        if not len(titles) == len(tokens) == len(weights) or not titles:
            raise ValueError(
                "each of one or more texts needs a title, its tokens and its weights; got "
                f"{len(titles)} titles, {len(tokens)} lists of tokens, {len(weights)} arrays of weights"
            )
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(f"name={name!r} starts ids: use lower-case letters, digits and hyphens")
        arrays = [np.asarray(w, dtype=np.float64) for w in weights]  # (L, H, T_n, T_n) each
        self.n_layers, self.n_heads = arrays[0].shape[:2] if arrays[0].ndim == 4 else (0, 0)
        for title, own, w in zip(titles, tokens, arrays, strict=True):
            _check(title, w, (self.n_layers, self.n_heads, len(own), len(own)))
        for label, (layer, head) in (presets or {}).items():
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
                raise ValueError(
                    f"preset {label!r}: there is no layer {layer} with head {head}; there are "
                    f"{self.n_layers} layers and {self.n_heads} heads, counted from 0"
                )
        self.go_to, self.caption, self.name = go_to, caption, name
        chosen = [[label, layer, head] for label, (layer, head) in (presets or {}).items()]
        self.titles = list(titles)
        self.data = {
            "layers": self.n_layers,
            "heads": self.n_heads,
            "presets": chosen,
            "texts": [
                {"title": title, "tokens": list(own), "w": _packed(w)}
                for title, own, w in zip(titles, tokens, arrays, strict=True)
            ],
        }

    def __repr__(self) -> str:
        return f"AttentionExplorer: {len(self.titles)} texts, {self.n_layers} layers, {self.n_heads} heads"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """The figure as HTML that needs nothing else."""
        # No "<" may stand in the data: "</script>" would end them, and "<!--" hide what follows.
        data = json.dumps(self.data, ensure_ascii=False).replace("<", "\\u003c")
        texts = {"GO": html.escape(self.go_to), "CAPTION": html.escape(self.caption)}
        parts = {"NAME": self.name, "DATA": data} | texts
        return re.sub("@(NAME|GO|CAPTION|DATA)@", lambda match: parts[match[1]], _PAGE)


def _check(title: str, w: np.ndarray, shape: tuple[int, int, int, int]) -> None:
    if w.shape != shape or not w.size:
        raise ValueError(
            f"{title!r}: the weights have the shape {w.shape}; needed is (layers, heads, tokens, tokens), "
            "with as many tokens as its list has and as many layers and heads as the first text"
        )
    if not (w.min() >= 0 and w.max() <= 1 + 1e-6):  # not this, where one is NaN
        raise ValueError(f"{title!r}: a weight is not from 0 to 1")


def _packed(w: np.ndarray) -> str:
    """Weights (L, H, T, T) as one byte each, in base64."""
    return base64.b64encode((w * _STEPS).round().astype(np.uint8).tobytes()).decode()


_PAGE = """
<figure id="fig-@NAME@-explorer" class="attention-explorer">
<style>
.attention-explorer { --ink: #0072b4; margin: 1rem 0; text-align: start; }
html[data-theme="dark"] .attention-explorer,
body[data-jp-theme-light="false"] .attention-explorer { --ink: #6cbcf0; }
.attention-explorer .choices { display: flex; flex-wrap: wrap;
  align-items: center; gap: .5rem 1rem; }
.attention-explorer [hidden] { display: none; }
.attention-explorer p { margin: .6rem 0; }
.attention-explorer label { display: block; max-width: 100%; margin: 0; }
.attention-explorer select, .attention-explorer button {
  font: inherit; max-width: 100%; min-height: 2.2rem; padding: .2rem .5rem;
  color: var(--pst-color-text-base, CanvasText);
  background: var(--pst-color-background, Canvas);
  border: 1px solid currentColor; border-radius: .3rem; }
.attention-explorer .draw svg {
  display: block; width: 100%; max-width: 34rem; height: auto; }
.attention-explorer text { fill: currentColor; font: 12px sans-serif; }
.attention-explorer rect {
  fill: var(--ink); stroke: currentColor; stroke-opacity: .15; }
.attention-explorer .says, .attention-explorer figcaption { font-size: .9rem; }
</style>
<div class="choices">
<label for="@NAME@-title">Title <select id="@NAME@-title"></select></label>
<label for="@NAME@-layer">Layer <select id="@NAME@-layer"></select></label>
<label for="@NAME@-head">Head <select id="@NAME@-head"></select></label>
</div>
<p class="choices" id="@NAME@-presets" hidden><span>@GO@</span></p>
<div class="draw"><svg id="@NAME@-drawing" role="img"></svg></div>
<p class="says" id="@NAME@-says" aria-live="polite"></p>
<noscript><p>This figure is drawn by a script, and scripts are switched off.</p></noscript>
<figcaption>@CAPTION@</figcaption>
<script type="application/json" id="@NAME@-data">@DATA@</script>
<script>
(() => {
  const get = name => document.getElementById("@NAME@-" + name);
  const data = JSON.parse(get("data").textContent);
  const [title, layer, head, svg] = ["title", "layer", "head", "drawing"].map(get);
  const bytes = text => Uint8Array.from(atob(text.w), c => c.charCodeAt(0));
  const weights = data.texts.map(bytes);
  const fill = (select, names) => names.forEach((name, i) => {
    const option = document.createElement("option");
    option.value = i;
    option.textContent = name;
    select.append(option);
  });
  const numbers = n => Array.from({length: n}, (_, i) => String(i + 1));
  const add = (parent, name, attributes, text) => {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };
  const percent = x => Math.round(100 * x) + "\u00a0%";
  const draw = () => {
    const tokens = data.texts[title.value].tokens;
    const n = tokens.length, size = 24, edge = 92, whole = edge + n * size;
    const start = (+layer.value * data.heads + +head.value) * n * n;
    const w = (i, j) => weights[title.value][start + i * n + j] / 200;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${whole + 40} ${whole + 2}`);
    const most = tokens.map((token, i) => {
      const best = tokens.reduce((b, _, j) => (w(i, j) > w(i, b) ? j : b), 0);
      return `${token} \\u2192 ${tokens[best]} ${percent(w(i, best))}`;
    });
    const where = `Layer ${+layer.value + 1}, head ${+head.value + 1}.`;
    const label = "Grid of attention weights; the text below says the same.";
    svg.setAttribute("aria-label", `${where} ${label}`);
    tokens.forEach((token, i) => {
      const middle = edge + i * size + size / 2;
      const at = {x: edge - 6, y: middle + 4, "text-anchor": "end"};
      add(svg, "text", at, token);
      const turn = `translate(${middle + 4} ${edge - 6}) rotate(-55)`;
      add(svg, "text", {transform: turn}, token);
      tokens.forEach((other, j) => {
        const corner = {x: edge + j * size, y: edge + i * size};
        const look = {width: size, height: size, "fill-opacity": w(i, j)};
        const cell = add(svg, "rect", {...corner, ...look});
        add(cell, "title", {}, `${token} looks at ${other}: ${percent(w(i, j))}`);
      });
    });
    const list = most.join("; ");
    get("says").textContent = `${where} Each token looks most at: ${list}.`;
  };
  fill(title, data.texts.map(text => text.title));
  fill(layer, numbers(data.layers));
  fill(head, numbers(data.heads));
  const choose = (l, h) => { layer.value = l; head.value = h; draw(); };
  for (const [name, l, h] of data.presets) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => choose(l, h));
    get("presets").append(button);
    get("presets").hidden = false;
  }
  for (const pick of [title, layer, head]) pick.addEventListener("change", draw);
  const [, l, h] = data.presets[0] ?? ["", 0, 0];
  choose(l, h);
})();
</script>
</figure>
"""
