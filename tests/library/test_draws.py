"""Values over draws: Student's t, intervals and comparisons in pairs, against doing the same by hand."""

import math

import pandas as pd
import pytest

from recsys_lib.draws import Draws, over_draws, student_quantile, student_tail
from recsys_lib.evaluation import Comparison


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 8, 29, 200])
def test_students_t_is_that_of_scipy(df):
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.3, -1.0, 2.365, 12.0):
        assert student_tail(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), abs=1e-12)
    for level in (0.5, 0.95, 0.99):
        assert student_quantile(df, level) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)


def test_students_t_by_the_printed_tables():
    assert [round(student_quantile(df), 3) for df in (1, 2, 7)] == [12.706, 4.303, 2.365]


def test_over_draws_by_hand():
    gap = over_draws([1.0, 2.0, 3.0])  # mean 2, deviation 1, error 1 / sqrt(3)
    assert isinstance(gap, Comparison)
    assert gap.mean == 2.0
    assert gap.std == 1.0
    assert gap.high - gap.mean == pytest.approx(4.302653 / 3**0.5, abs=1e-6)
    assert gap.mean - gap.low == pytest.approx(gap.high - gap.mean)
    assert gap.p_value == pytest.approx(0.0741799, abs=1e-6)  # t = 2 sqrt(3), two degrees of freedom
    assert not gap.clear
    assert "3 draws" in repr(gap)
    assert f"{gap:.1f}".startswith("+2.0")


def test_over_draws_at_the_edges():
    alone = over_draws([0.2])
    assert alone.mean == pytest.approx(0.2)
    assert math.isnan(alone.low)
    assert not alone.clear
    same = over_draws([0.5, 0.5, 0.5])
    assert (same.low, same.high, same.p_value) == (0.5, 0.5, 0.0)
    assert over_draws([0.0, 0.0]).p_value == 1.0
    for wrong in ([], [0.1, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            over_draws(wrong)


def test_a_paired_comparison_takes_out_the_level_of_the_draws():
    stats = pytest.importorskip("scipy.stats")
    draws = Draws({"a": [0.1, 0.3, 0.5, 0.7], "b": [0.09, 0.28, 0.49, 0.68]})
    gap, unpaired = draws.compare("a", "b"), draws.mean("a")
    expected = stats.ttest_rel(draws.frame["a"], draws.frame["b"])
    assert gap.p_value == pytest.approx(expected.pvalue)
    assert (gap.low, gap.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert gap.clear
    assert gap.high - gap.low < (unpaired.high - unpaired.low) / 20
    assert draws.compare("b", "a").mean == -gap.mean


def test_the_spread_is_a_table_of_two_ways():
    level = pd.Series([0.1, 0.2, 0.3, 0.4])
    exact = Draws({"a": level, "b": level + 0.05}).spread()
    assert exact["draw"] == pytest.approx(level.std())
    assert exact["model"] == pytest.approx(0.05 / 2**0.5)
    assert exact["rest"] == pytest.approx(0, abs=1e-12)
    crossed = Draws({"a": [0.0, 1.0], "b": [1.0, 0.0]}).spread()
    assert crossed["draw"] == crossed["model"] == 0
    assert crossed["rest"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two draws and two models"):
        Draws({"a": level}).spread()


def test_draws_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="every draw"):
        Draws({"a": [0.1, 0.2], "b": [0.1]})
    with pytest.raises(ValueError, match=r"not so.*b"):
        Draws({"a": [0.1, 0.2], "b": [0.1, math.nan]})
    with pytest.raises(KeyError, match="no model 'c'; there are a"):
        Draws({"a": [0.1]}).mean("c")


# ------------------------------------------------------------------------------------------ the draws
