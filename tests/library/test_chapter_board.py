"""The scoreboard's figure: what can be told apart, and what covers what."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from recsys_lib.chapter.board import quality_against_cost, undominated


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def scores(n=17, families=7, seed=0, spread=0.02):
    """Rows such as chapters leave: clusters of equal cost, and values that lie close together."""
    rng = np.random.default_rng(seed)
    value = rng.uniform(0.1, 0.2, n)
    return pd.DataFrame(
        {
            "family": [f"family {row % families}" for row in range(n)],
            "metric": "ndcg@10",
            "value": value,
            "low": value - spread,
            "high": value + spread,
            "fit_seconds": 10.0 ** rng.integers(-2, 3, n) * rng.uniform(1, 1.2, n),
        },
        index=range(1, n + 1),
    )


def test_no_two_families_look_alike():
    axes = quality_against_cost(scores(24, families=12), {})
    lines = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 12
    assert {text.get_text() for text in axes.figure.legends[0].get_texts()} == {
        f"family {number}" for number in range(12)
    }


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_cover_each_other(seed):
    rows = scores(seed=seed)
    axes = quality_against_cost(rows, {row: str(row) for row in rows.index})
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [str(row) for row in rows.index]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_labels_do_not_cover_a_lone_mark():
    rows = scores(1)
    axes = quality_against_cost(rows, {1: "a model with a long name"})
    axes.figure.draw_without_rendering()
    x, y = axes.transData.transform((rows.fit_seconds[1], rows.value[1]))
    box = axes.texts[0].get_window_extent()
    assert not (box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1)


def test_marks_are_where_they_were_measured():
    rows = scores(3, families=1)
    rows.loc[2, "fit_seconds"] = 0.0  # a logarithmic axis has no zero
    rows.loc[3, "low"] = np.nan
    axes = quality_against_cost(rows, {1: "one", 3: "not drawn", 9: "unknown"})
    line = axes.containers[0].lines[0]
    assert line.get_ydata().tolist() == [rows.value[1], rows.value[2]]
    assert line.get_xdata().tolist() == [rows.fit_seconds[1], 1e-3]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "NDCG@10"
    assert [text.get_text() for text in axes.texts] == ["one"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="low"), "no column low"),
        (lambda rows: rows.assign(metric=["a", "b", "a"]), "are of"),
        (lambda rows: rows.assign(fit_seconds=np.nan), "one metric is drawn"),
    ],
)
def test_what_cannot_be_drawn_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        quality_against_cost(change(scores(3)), {})


@pytest.mark.parametrize(
    ("cost", "value", "expected"),
    [
        ([1, 2, 3], [0.1, 0.2, 0.3], [0, 1, 2]),
        ([1, 2, 3], [0.3, 0.2, 0.1], [0]),
        ([1, 1, 2], [0.1, 0.2, 0.2], [1]),
        ([3, 1, 2], [0.3, 0.1, 0.2], [1, 2, 0]),
        ([np.nan, 1, 2], [0.9, 0.1, 0.1], [1]),
    ],
)
def test_undominated_rows(cost, value, expected):
    assert undominated(pd.DataFrame({"fit_seconds": cost, "value": value})) == expected
