"""The scoreboard's figure: what can be told apart, and what covers what."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from recsys_lib.chapter import Chapter
from recsys_lib.chapter.board import against_first, quality_against_cost, undominated
from recsys_lib.chapter.results import recorded
from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.evaluation import compare, evaluate
from recsys_lib.models import EASE, ItemKNN, Popularity


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


def test_rows_are_compared_with_the_first_by_what_the_chapters_wrote(tmp_path):
    """As the evaluator does where it has both reports, up to the six decimals that are written."""
    rng = np.random.default_rng(0)
    pairs = np.unique(np.stack([np.repeat(np.arange(60), 12), rng.integers(0, 40, 720)], 1), axis=0)
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=rng.permutation(len(pairs)))
    events = Interactions.from_frame(frame)
    splits = [leave_last_out(events, n=n) for n in (2, 1)]

    def report(model, split=splits[0]):
        fitted = model.fit(split.history, device="cpu")
        return evaluate(fitted, split.test, seen=split.history, progress=False)

    reports = [report(EASE()), report(ItemKNN()), report(Popularity()), report(EASE(), splits[1])]
    for place, (name, found) in enumerate(zip("abcd", reports, strict=True)):
        chapter = Chapter(f"0{place}_{name}", dataset="d", seed=0, device="cpu", results=tmp_path)
        chapter.record(name, found, model=name, family="f", scoreboard=True)
        chapter.record(f"{name}-off", found, model=name, family="f")
        chapter.finish()
    rows = [row for made in recorded(tmp_path).values() for row in made["results"]]
    assert [row["per_user"] is None for row in rows] == [not row["scoreboard"] for row in rows]

    gaps = against_first(pd.DataFrame([row for row in rows if row["scoreboard"]]))
    assert gaps[0] is gaps[3] is None  # itself, and another split
    for gap, other in zip(gaps[1:3], reports[1:3], strict=True):
        right = compare(other, reports[0], "ndcg@10")
        assert gap.n == right.n == 60
        assert gap[:3] == pytest.approx(right[:3], abs=2e-6)
        assert gap.p_value == pytest.approx(right.p_value, abs=2e-3)


def test_rows_without_values_are_not_compared():
    def gaps(*per_user, over=("x", "x")):
        return against_first(pd.DataFrame({"per_user": per_user, "over": over}))

    assert gaps([0.1, 0.2], [0.4, 0.4])[1].mean == pytest.approx(0.25)
    assert gaps([0.1, 0.2], None, over=("x", None)) == [None, None]
    assert gaps(None, [0.1, 0.2], over=(None, "x")) == [None, None]
    assert gaps(None, None, over=(None, None)) == [None, None]
    assert gaps([0.1, 0.2], [0.4, 0.4], over=("x", "y")) == [None, None]
    assert against_first(pd.DataFrame({"per_user": [], "over": []})) == []
