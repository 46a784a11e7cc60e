"""The scoreboard's figure: ranking quality against cost, one mark a model."""

from collections.abc import Mapping, Sequence
from itertools import cycle, islice, product
from typing import TYPE_CHECKING, Any

from recsys_lib.chapter.show import PALETTE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from recsys_lib.evaluation import Comparison

__all__ = ["against_first", "quality_against_cost", "undominated", "write_labels"]

_MARKERS = "oDs^vP*"  # seven, and six colors: together they repeat after 42 families
_SIZES = {"*": 12.0, "P": 8.0, "D": 6.5}  # points; a star of the usual size is hardly seen
_LEAST_COST = 1e-3  # seconds; a logarithmic axis has no zero
_NEEDED = ("family", "metric", "value", "low", "high", "fit_seconds")


def quality_against_cost(
    scores: "pd.DataFrame", labels: Mapping[Any, str], *, size: tuple[float, float] = (6.4, 4.4)
) -> "Axes":
    """Draws each model's value with its interval against the seconds that fitting took.

    A family has a color and a shape that no other family has. Labels are set where they cover neither each
    other nor a mark, as far as there is room.

    Args:
        scores: a row for each model, with the columns ``family``, ``metric``, ``value``, ``low``, ``high``
            and ``fit_seconds``. Rows without an interval or a cost are left out.
        labels: what to write beside the mark of a row, by the row's index; the others get nothing.
        size: of the figure, in inches.

    Raises:
        ValueError: a column is missing, the rows are of several metrics, or none has an interval and a cost.
    """
    import matplotlib.pyplot as plt

    missing = [column for column in _NEEDED if column not in scores]
    if missing:
        raise ValueError(f"the scores have no column {', '.join(missing)}")
    scores = scores.dropna(subset=["low", "high", "fit_seconds"])
    metrics = sorted(set(scores.metric))
    if len(metrics) != 1:
        raise ValueError(f"one metric is drawn, but the rows with an interval and a cost are of {metrics}")
    figure, axes = plt.subplots(figsize=size)
    cost = scores.fit_seconds.clip(lower=_LEAST_COST)
    families = sorted(set(scores.family))
    for family, color, marker in zip(
        families, cycle(PALETTE), islice(cycle(_MARKERS), len(families)), strict=False
    ):
        rows = scores[scores.family == family]
        spread = [rows.value - rows.low, rows.high - rows.value]
        style: dict[str, Any] = {"fmt": marker, "color": color, "capsize": 2, "elinewidth": 1}
        # a pale edge keeps marks apart that lie over each other
        style |= {"markeredgecolor": "white", "markeredgewidth": 0.7, "markersize": _SIZES.get(marker, 7.0)}
        axes.errorbar(cost[rows.index], rows.value, yerr=spread, label=family, **style)
    axes.set(xscale="log", xlabel="seconds to fit", ylabel=metrics[0].upper())
    axes.margins(0.08)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, handletextpad=0.2, columnspacing=1.2)
    write_labels(
        axes,
        [(cost[row], scores.value[row], text) for row, text in labels.items() if row in scores.index],
        list(zip(cost, scores.value, scores.low, scores.high, strict=True)),
    )
    return axes


def undominated(scores: "pd.DataFrame") -> list[Any]:
    """Returns the rows that no other row beats: none is at least as good and as cheap, and better in one.

    Args:
        scores: rows with ``value`` and ``fit_seconds``; those without a cost are left out.
    """
    ordered = scores.dropna(subset=["fit_seconds"]).sort_values(
        ["fit_seconds", "value"], ascending=[True, False]
    )
    before = ordered.value.cummax().shift(fill_value=float("-inf"))
    return list(ordered.index[ordered.value > before])


def against_first(scores: "pd.DataFrame") -> list["Comparison | None"]:
    """Compares each row with the first, user by user: row minus first.

    Args:
        scores: a row for each model, with the columns ``per_user``, a list of values or None, and ``over``,
            which is the same where the values are of the same users, items to find and candidates.

    Returns:
        One for each row; None for the first, and where there are no values of the same.
    """
    import torch

    from recsys_lib.evaluation import paired

    found: list[Comparison | None] = []
    for place, (values, over) in enumerate(zip(scores.per_user, scores.over, strict=True)):
        first = scores.per_user.iloc[0]
        known = isinstance(values, list) and isinstance(first, list) and over == scores.over.iloc[0]
        if not place or not known:
            found.append(None)
            continue
        ours, theirs = torch.tensor([values, first], dtype=torch.float64, device="cpu")  # (U,), (U,)
        found.append(paired(ours - theirs))
    return found


Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


def write_labels(
    axes: "Axes",
    wanted: Sequence[tuple[float, float, str]],
    marks: Sequence[tuple[float, float, float, float]],
) -> None:
    """Writes texts beside points, each at the first place around it where it covers the least.

    Args:
        axes: with everything else drawn.
        wanted: x, y and text.
        marks: x, y and the ends of the interval, which are not to be covered.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # fixes the layout
    scale = 72 / figure.dpi  # pixels to points

    def at(x: float, y: float) -> tuple[float, float]:
        left, bottom = axes.transData.transform((x, y)) * scale
        return float(left), float(bottom)

    taken: list[Box] = []
    for x, y, low, high in marks:
        (across, up), (_, foot), (_, head) = at(x, y), at(x, low), at(x, high)
        taken += [(across - 4, up - 4, across + 4, up + 4), (across - 1, foot, across + 1, head)]
    frame = axes.get_window_extent()
    inside: Box = tuple(float(edge) * scale for edge in (frame.x0, frame.y0, frame.x1, frame.y1))  # type: ignore[assignment]
    for x, y, text in wanted:
        note = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=9)
        extent = note.get_window_extent()
        width, height = extent.width * scale, extent.height * scale
        across, up = at(x, y)

        places = [
            (side, rise)
            for distance, (side_of, rise_of) in product((6, 10, 16, 24, 34), product((1, -1, 0), (1, 0, -1)))
            if side_of or rise_of
            for side in [distance if side_of > 0 else -distance - width if side_of < 0 else -width / 2]
            for rise in [
                distance / 2 if rise_of > 0 else -distance / 2 - height if rise_of < 0 else -height / 2
            ]
        ]
        boxes = [
            (across + right, up + rise, across + right + width, up + rise + height) for right, rise in places
        ]
        best = min(range(len(places)), key=lambda place: _covered(boxes[place], taken, inside))
        note.set_position(places[best])
        taken.append(boxes[best])


def _covered(box: Box, taken: Sequence[Box], inside: Box) -> float:
    """Returns the area of a box that lies over others, or outside."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, inside) + sum(_overlap(box, other) for other in taken)


def _overlap(one: Box, other: Box) -> float:
    """Returns the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
