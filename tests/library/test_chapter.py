import ast
import inspect
import io
import itertools
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recsys_lib import losses
from recsys_lib.chapter import (
    PALETTE,
    Chapter,
    figure_style,
    record,
    recorded,
    results_dir,
    show,
    show_source,
)
from recsys_lib.evaluation import Comparison

ROOT = Path(__file__).resolve().parents[2]


def report(value=0.07, low=0.06, high=0.08):
    """What `evaluate` returns, as far as a chapter looks at it."""
    return SimpleNamespace(
        metrics={"ndcg@10": value, "coverage@10": 0.5},
        per_user={"ndcg@10": torch.full((5,), value)},
        n=5,
        interval=lambda name: (low, high),
    )


@pytest.fixture
def chapter(tmp_path):
    return Chapter("04_bpr", dataset="100k", seed=3, device="cpu", results=tmp_path)


def written(chapter, tmp_path):
    chapter.finish()
    return json.loads((tmp_path / "04_bpr.json").read_text())


def test_everything_recorded_is_written(chapter, tmp_path):
    facts = {"model": "BPR", "family": "matrix factorization"}
    chapter.record("bpr", report(), "ndcg@10", **facts, fit_seconds=2.5, headline=True, scoreboard=True)
    chapter.record("coverage", report(), "coverage@10", **facts, seed=[0, 1])
    chapter.number("gain", torch.tensor(0.25), headline=True, deterministic=True)
    chapter.number("users", np.int64(942))
    chapter.claim("a-beats-b", "A beats B.", "depends", "by a lot", "on this data")
    result = written(chapter, tmp_path)
    first, second = result["results"]
    assert first == {
        "name": "bpr", "value": 0.07, "low": 0.06, "high": 0.08, "n": 5, "metric": "ndcg@10", "model": "BPR",
        "family": "matrix factorization", "seed": 3, "fit_seconds": 2.5, "headline": True, "scoreboard": True,
        "deterministic": False, "per_user": None, "over": None,
    }  # fmt: skip
    assert (second["low"], second["high"], second["seed"]) == (None, None, [0, 1])
    assert result["numbers"] == {"gain": 0.25, "users": 942}
    assert result["headline_numbers"] == {"gain": True}
    assert result["claims"] == [
        {"id": "a-beats-b", "statement": "A beats B.", "verdict": "depends", "evidence": "by a lot",
         "condition": "on this data", "chapter": "04_bpr"}
    ]  # fmt: skip
    assert (result["chapter"], result["dataset"], result["seed"], result["device"]) == (
        "04_bpr",
        "100k",
        3,
        "cpu",
    )
    assert result["versions"]["torch"] == torch.__version__
    assert result["seconds"] >= 0
    assert result["peak_memory_mb"] > 50  # torch alone takes more
    assert recorded(tmp_path) == {"04_bpr": result}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan"))])
def test_what_is_not_finite_is_refused_and_leaves_nothing(chapter, tmp_path, bad):
    facts = {"metric": "ndcg@10", "model": "m", "family": "f"}
    for wrong in (report(value=bad), report(low=bad), report(high=bad)):
        with pytest.raises(ValueError, match="not finite"):
            chapter.record("bpr", wrong, **facts)
    with pytest.raises(ValueError, match="not finite"):
        chapter.record("bpr", report(), **facts, fit_seconds=bad)
    with pytest.raises(ValueError, match="not finite"):
        chapter.number("bpr", bad)
    result = written(chapter, tmp_path)
    assert result["results"] == []
    assert result["numbers"] == {}


@pytest.mark.parametrize("bad", ["0.5", None, True, torch.zeros(2), [1.0]])
def test_what_is_no_number_is_refused(chapter, bad):
    with pytest.raises((TypeError, RuntimeError)):
        chapter.number("x", bad)


def test_a_name_stands_for_one_value(chapter):
    chapter.record("bpr", report(), model="m", family="f")
    with pytest.raises(ValueError, match="'bpr' has been recorded before"):
        chapter.number("bpr", 1.0)
    chapter.number("a-b", 1)
    with pytest.raises(ValueError, match="'a-b' has been recorded before"):
        chapter.record("a-b", report(), model="m", family="f")
    chapter.claim("x", "A.", "holds", "b")
    with pytest.raises(ValueError, match="recorded before"):
        chapter.claim("x", "B.", "holds", "b")


@pytest.mark.parametrize("name", ["", "Bpr", "a b", "a::b", "1st", "a--b", "a/b", "ä", "a-"])
def test_a_malformed_name_is_refused(chapter, name):
    with pytest.raises(ValueError, match="no name"):
        chapter.number(name, 1.0)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (("a", "S.", "maybe", "e"), "verdict 'maybe' is not one of holds, fails, depends"),
        (("a", "S.", "depends", "e"), "condition must not be empty"),
        (("a", " ", "holds", ""), "statement and evidence must not be empty"),
        (("A b", "S.", "holds", "e"), "no name"),
    ],
)
def test_a_claim_that_lacks_a_part_is_refused(chapter, claim, message):
    with pytest.raises(ValueError, match=message):
        chapter.claim(*claim)


def gap(low, high):
    return Comparison(mean=(low + high) / 2, low=low, high=high, p_value=0.01, n=9, std=0.1)


@pytest.mark.parametrize(
    ("difference", "holds", "verdict"),
    [
        (gap(0.01, 0.03), "above", "holds"),
        (gap(0.01, 0.03), "below", "fails"),
        (gap(-0.03, -0.01), "above", "fails"),
        (gap(-0.03, -0.01), "below", "holds"),
        (gap(-0.01, 0.03), "above", "depends"),
        (gap(0.0, 0.03), "below", "depends"),
    ],
)
def test_a_difference_decides_a_claim(chapter, tmp_path, difference, holds, verdict):
    chapter.claim("c", "S.", difference=difference, holds=holds, evidence="e", condition="more users tell")
    (claim,) = written(chapter, tmp_path)["claims"]
    assert claim["verdict"] == verdict
    assert claim["condition"] == ("more users tell" if verdict == "depends" else "")


@pytest.mark.parametrize("verdict", ["holds", "fails", "depends"])
def test_a_condition_stands_beside_no_other_verdict_than_depends(chapter, tmp_path, verdict):
    """Also where the verdict is stated, as a chapter does that found it in several differences."""
    chapter.claim("c", "S.", verdict, evidence="e", condition="on the data")
    (claim,) = written(chapter, tmp_path)["claims"]
    assert (claim["verdict"], claim["condition"]) == (verdict, "on the data" if verdict == "depends" else "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give a verdict, or a difference"),
        ({"verdict": "holds", "difference": gap(1, 2)}, "give a verdict, or a difference"),
        ({"verdict": "holds", "holds": "above"}, "'holds' is for a difference"),
        ({"difference": gap(1, 2), "condition": "c"}, "say where it holds"),
        ({"difference": gap(1, 2), "condition": "c", "holds": "over"}, "not 'over'"),
        # needed whatever this run found, so that another run does not end in an error
        ({"difference": gap(1, 2), "holds": "above"}, "give a condition"),
        ({"difference": gap(1, math.nan), "holds": "above", "condition": "c"}, "not finite"),
    ],
)
def test_a_claim_that_nothing_decides_is_refused(chapter, arguments, message):
    with pytest.raises(ValueError, match=message):
        chapter.claim("c", "S.", evidence="e", **arguments)
    chapter.claim("c", "S.", "holds", "e")  # what was refused took no name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("BPR gains " + f"{gap(0.006, 0.018):.3f}.", "BPR gains +0.012\u00a0[+0.006,\u00a0+0.018]."),
        (f"It is {-0.0123:.3f}.", "It is −0.012."),
        (f"It is {-0.00001:.3f} or {-0.0:.0%}.", "It is 0.000 or 0%."),
        ("[-0.01, -.02] and (-1,234.5)", "[−0.01, −.02] and (−1,234.5)"),
        ("(-0.5x, -0.0x, -0,5x)", "(-0.5x, -0.0x, -0,5x)"),  # a part of a number is none
        ("| a |\n|---|\n| -0.5 % |", "| a |\n|---|\n| −0.5 % |"),
        ("`x[-1]`, $x_{-1}$, $$-0.5$$", "`x[-1]`, $x_{-1}$, $$-0.5$$"),
        ("[a](https://a.org/x-1/-2) 2020-01-02, k-1", "[a](https://a.org/x-1/-2) 2020-01-02, k-1"),
        ("\n    One\n    two.\n\n    - three\n    ", "One\ntwo.\n\n- three"),
        (r"$\frac{a}{b}$ and `{x}`", r"$\frac{a}{b}$ and `{x}`"),
        ("information and infinite nanometers", "information and infinite nanometers"),
    ],
)
def test_what_is_said_is_set_as_prose(chapter, capsys, text, shown):
    chapter.say(text)
    assert capsys.readouterr().out == f"{shown}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("It is {gap:.3f}.", "put an f before the quotes"),
        ("It is {glue:text}`gap:.3f`.", "put an f before the quotes"),
        (f"It is {math.nan:.3f}.", "a value is nan"),
        (f"It is {-math.inf:.3f}.", "a value is -inf"),
        ("It is 1.2400000095367432.", "format the number"),
    ],
)
def test_what_could_not_be_meant_is_not_said(chapter, text, message):
    with pytest.raises(ValueError, match=message):
        chapter.say(text)


def test_only_a_text_is_said(chapter):
    with pytest.raises(TypeError, match="expected a text"):
        chapter.say(0.5)


def test_an_unknown_metric_is_named(chapter):
    with pytest.raises(KeyError, match="no metric 'ndcg@5'; it has ndcg@10, coverage@10"):
        chapter.record("bpr", report(), "ndcg@5", model="m", family="f")


def test_nothing_is_recorded_after_the_end(chapter):
    chapter.finish()
    for call in (lambda: chapter.number("x", 1), lambda: chapter.record("y", report(), model="m", family="f"),
                 lambda: chapter.claim("z", "S.", "holds", "e"), chapter.finish):  # fmt: skip
        with pytest.raises(RuntimeError, match="has finished"):
            call()


def test_a_full_disk_leaves_no_file(chapter, tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        chapter.finish()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    chapter.finish()  # it can be tried again
    assert [path.name for path in tmp_path.iterdir()] == ["04_bpr.json"]


def test_results_go_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RECSYS_RESULTS", str(tmp_path / "deep" / "er"))
    Chapter("01_x", dataset="d", seed=0, device="cpu").finish()
    assert (tmp_path / "deep" / "er" / "01_x.json").exists()
    monkeypatch.delenv("RECSYS_RESULTS")
    assert results_dir() == Path("results")


def test_reading_back_what_is_not_there_or_not_right(tmp_path):
    assert recorded(tmp_path / "nowhere") == {}
    (tmp_path / "01_a.json").write_text('{"chapter": "01_b"}')
    with pytest.raises(ValueError, match=r"01_a\.json: not the results of a chapter named 01_a"):
        recorded(tmp_path)
    (tmp_path / "01_a.json").write_text('{"chapter": "01_')
    with pytest.raises(ValueError, match=r"01_a\.json: not valid JSON"):
        recorded(tmp_path)


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="device"):
        Chapter("x", dataset="d", seed=0, device="no-such-device")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"name": ""}, "chapter is '', not a text"),
        ({"dataset": None}, "dataset is None, not a text"),
        ({"seed": np.int64(0)}, "seed is .*0.*, not a whole number"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(facts, message):
    with pytest.raises(ValueError, match=message):
        Chapter(**{"name": "x", "dataset": "d", "seed": 0, "device": "cpu", **facts})


def test_a_result_without_a_model_is_refused_and_leaves_nothing(chapter, tmp_path):
    for part in ("model", "family"):
        with pytest.raises(ValueError, match=f"result 'bpr': {part} is '', not a text that is not empty"):
            chapter.record("bpr", report(), **{"model": "m", "family": "f", part: ""})
    chapter.record("bpr", report(), model="m", family="f")  # what was refused took no name
    assert len(written(chapter, tmp_path)["results"]) == 1


def drawn():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([0, 1], [1, 0], label="a")
    axes.fill_between([0, 1], [0, 1])  # a clip path, whose name is drawn at random without a salt
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def test_the_same_figure_gives_the_same_bytes_whatever_the_reader_has_set():
    import matplotlib as mpl

    mpl.use("agg")
    figure_style()
    before = drawn()
    mpl.rcParams.update({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None})
    assert drawn() != before
    figure_style()
    assert drawn() == before


def luminance(rgb):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def rgb(color):
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def contrast(one, other):
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def on_dark_page(color):
    """The page's ``invert(.92) hue-rotate(180deg)``, as the filter effects specification defines it."""
    inverted = color * (1 - 0.92) + (1 - color) * 0.92
    around = np.array([0.213, 0.715, 0.072])
    return np.clip(2 * inverted @ around - inverted, 0, 1)  # half a turn mirrors about the gray axis


@pytest.mark.parametrize("color", PALETTE)
def test_every_color_stands_out_on_the_light_and_the_dark_page(color):
    white = np.ones(3)
    assert contrast(rgb(color), white) >= 3
    assert contrast(on_dark_page(rgb(color)), on_dark_page(white)) >= 3


# Machado, Oliveira, Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", at severity 1; row by row.
VISION = {
    "protanopia": [
        0.152286,
        1.052583,
        -0.204868,
        0.114503,
        0.786281,
        0.099216,
        -0.003882,
        -0.048116,
        1.051998,
    ],
    "deuteranopia": [
        0.367322,
        0.860646,
        -0.227968,
        0.280085,
        0.672501,
        0.047413,
        -0.01182,
        0.04294,
        0.968881,
    ],
    "tritanopia": [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039],
}


@pytest.mark.parametrize("matrix", VISION.values(), ids=VISION.keys())
def test_any_two_colors_stay_apart(matrix):
    def lab(color):
        value = rgb(color)
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.reshape(matrix, (3, 3)) @ linear, 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        xyz = to_xyz @ seen / [0.9505, 1, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for one, other in itertools.combinations(PALETTE, 2):
        assert np.linalg.norm(lab(one) - lab(other)) > 15, (one, other)


def test_source_is_printed_in_plain_python(capsys):
    show_source(losses.bpr_loss, Chapter.finish)
    shown = capsys.readouterr().out
    assert "# recsys_lib/losses.py, lines " in shown
    assert inspect.getsource(losses.bpr_loss).rstrip() in shown
    assert "# recsys_lib/chapter/record.py" in shown
    assert str(ROOT) not in shown
    assert "\ndef finish(self)" in shown  # a method is shown without its indentation


def test_the_lines_named_are_the_lines_shown(capsys):
    show_source(losses.bpr_loss)
    first, *rest = capsys.readouterr().out.splitlines()
    start, end = (int(word) for word in first.split("lines ")[1].split(" to "))
    assert (ROOT / "recsys_lib" / "losses.py").read_text().splitlines()[start - 1 : end] == rest


def test_a_package_and_a_module_can_be_shown(capsys):
    import recsys_lib

    show_source(recsys_lib, losses)
    shown = capsys.readouterr().out
    assert "# recsys_lib/__init__.py, lines 1 to" in shown
    assert "# recsys_lib/losses.py, lines 1 to" in shown


@pytest.mark.parametrize(
    "source", [inspect.getsource(part) for part in (record, show, losses)], ids=["record", "show", "losses"]
)
def test_without_docstrings_the_code_is_the_same(source):
    bare = show._without_docstrings(source)

    def code(text):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:]
        return ast.dump(tree)

    assert code(bare) == code(source)
    trees = ast.walk(ast.parse(bare))
    assert not [
        n for n in trees if isinstance(n, ast.FunctionDef) and len(n.body) > 1 and ast.get_docstring(n)
    ]
    assert [line for line in source.splitlines() if line.strip().startswith("#")] == [
        line for line in bare.splitlines() if line.strip().startswith("#")
    ]


def test_what_has_no_source_is_refused():
    with pytest.raises(TypeError):
        show_source(len)


def test_in_a_notebook_recording_shows_nothing_and_source_is_markdown():
    """One shell of its own, since a shell stays with its process."""
    code = textwrap.dedent(
        """
        import json, os, tempfile
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.capture import capture_output
        shell = InteractiveShell.instance()
        with capture_output() as caught:
            os.environ["RECSYS_RESULTS"] = tempfile.mkdtemp()
            from recsys_lib.chapter import *
            chapter = Chapter("01_x", dataset="d", seed=0, device="cpu")
            chapter.number("a-b", 0.5)
            from recsys_lib.losses import bpr_loss
            show_source(bpr_loss)
            chapter.say("**Gain** of -0.5.")
            from matplotlib_inline.config import InlineBackend
            inline = InlineBackend.instance()
        print(json.dumps([[out.data for out in caught.outputs], list(inline.figure_formats),
                          inline.print_figure_kwargs]))
        """
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    (source, said), formats, options = json.loads(run.stdout.splitlines()[-1])
    assert source["text/markdown"].startswith("`recsys_lib/losses.py, lines ")
    assert "\n```python\ndef bpr_loss(" in source["text/markdown"]
    assert said == {"text/markdown": "**Gain** of −0.5.", "text/plain": "**Gain** of −0.5."}
    assert (formats, options["metadata"]) == (["svg"], {"Date": None})
