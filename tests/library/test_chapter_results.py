"""The schema of a results file: what is written is read back, and whatever else is refused by name."""

import copy
import json
from dataclasses import replace

import pytest

from recsys_lib.chapter.results import (
    VERDICTS,
    ChapterResults,
    Claim,
    Headline,
    ResultsError,
    read_all,
    recorded,
)

ROW = {
    "name": "bpr", "value": 0.07, "low": 0.06, "high": 0.08, "n": 942, "metric": "ndcg@10", "model": "BPR",
    "family": "matrix factorization", "seed": [0, 1], "fit_seconds": 2.5, "headline": True,
    "scoreboard": True, "deterministic": False, "per_user": None, "over": None,
}  # fmt: skip
BARE = {
    **ROW,
    "name": "most-popular",
    "low": None,
    "high": None,
    "seed": 0,
    "fit_seconds": None,
    "headline": False,
}
CLAIM = {
    "id": "a-beats-b", "statement": "A beats B – <b>always</b>.", "verdict": "depends",
    "evidence": "by a lot", "condition": "on this data", "chapter": "04_bpr",
}  # fmt: skip
FILE = {
    "chapter": "04_bpr",
    "title": "4. Ranking",
    "dataset": "100k",
    "seed": 0,
    "device": "cpu",
    "hardware": "cpu: x, 1 thread",
    "seconds": 12.5,
    "peak_memory_mb": 640.2,
    "versions": {"torch": "2.13.0"},
    "results": [ROW, BARE],
    "numbers": {"users": 942, "gain": 0.25, "gain_low": -1e-300},
    "headline_numbers": {"gain": True},
    "claims": [CLAIM],
}


def written(folder, data, name="04_bpr"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data), encoding="utf8")
    return path


def changed(change):
    data = copy.deepcopy(FILE)
    change(data)
    return data


# ---- what is right ----


def test_what_is_written_is_read_back_and_written_alike(tmp_path):
    results = ChapterResults.from_json(FILE)
    path = results.write(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "04_bpr.json"
    assert list(path.parent.iterdir()) == [path]
    assert ChapterResults.read(path) == results
    assert ChapterResults.read(path).text() == path.read_text("utf8")
    assert recorded(path.parent) == {"04_bpr": FILE}
    assert read_all(path.parent) == {"04_bpr": results}


def test_the_file_keeps_its_layout():
    """The runner compares files by their hash, and a person reads them."""
    text = ChapterResults.from_json(dict(reversed(FILE.items()))).text()
    assert text == json.dumps(FILE, indent=1, ensure_ascii=False) + "\n"
    assert "–" in text


PAIRED = {**ROW, "n": 4, "value": 0.25, "per_user": [0, 0.5, 0.123457, 0.376543], "over": "3f"}


def test_values_per_user_are_a_line_of_the_file(tmp_path):
    data = {**FILE, "results": [PAIRED], "title": 'T "per_user": [\n 1,\n 2]'}
    text = ChapterResults.from_json(data).text()
    assert '   "per_user": [ 0, 0.5, 0.123457, 0.376543 ],\n' in text
    assert json.loads(text) == data
    assert ChapterResults.read(written(tmp_path, data)).results[0].per_user == PAIRED["per_user"]


def test_results_without_values_per_user_are_read_as_such():
    """As older code wrote them."""
    row = {name: value for name, value in ROW.items() if name not in {"per_user", "over"}}
    (read,) = ChapterResults.from_json({**FILE, "results": [row]}).results
    assert (read.per_user, read.over) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_user": [0.1, "x", 0, 0]}, r"per_user is \[.*\], not a list of finite numbers or null"),
        ({"per_user": "0.1"}, "per_user is '0.1', not a list"),
        ({"per_user": [0.1, None, 0, 0]}, "not a list of finite numbers"),
        ({"per_user": None}, "per_user and over go together"),
        ({"over": None}, "per_user and over go together"),
        ({"over": ""}, "over is '', not a text that is not empty or null"),
        ({"per_user": [0.25, 0.25, 0.25]}, "per_user has 3 values for 4 users"),
        ({"per_user": [0.25, 0.25, 0.25, 0.26]}, "value is not the mean of per_user"),
    ],
)
def test_values_per_user_that_do_not_fit_are_named(change, message):
    with pytest.raises(ResultsError, match=f"result 'bpr': .*{message}"):
        ChapterResults.from_json({**FILE, "results": [{**PAIRED, **change}]})


def test_a_whole_number_stays_one():
    numbers = ChapterResults.from_json(FILE).numbers
    assert [type(number) for number in numbers.values()] == [int, float, float]


def test_chapters_are_in_the_order_of_their_names(tmp_path):
    for name in ("99_all", "01_first", "04_bpr"):
        written(tmp_path, {**FILE, "chapter": name, "claims": []}, name)
    assert list(read_all(tmp_path)) == list(recorded(tmp_path)) == ["01_first", "04_bpr", "99_all"]
    assert read_all(tmp_path / "nowhere") == {}


def test_headlines_are_what_was_marked():
    results = ChapterResults.from_json(FILE)
    assert results.headlines == {"bpr": Headline(0.07, False), "gain": Headline(0.25, True)}


def test_fields_that_are_not_known_are_kept(tmp_path):
    """A later version may write more; an earlier one neither fails on it nor loses it."""
    later = {
        **FILE,
        "sentences": ["A new one."],
        "more": 1,
        "results": [{**ROW, "unit": "users"}],
        "claims": [{**CLAIM, "weight": 0.5}],
    }
    path = written(tmp_path, later)
    results = ChapterResults.read(path)
    assert results.more == {"sentences": ["A new one."], "more": 1}
    assert results.results[0].more == {"unit": "users"}
    assert results.claims[0].more == {"weight": 0.5}
    # as the runner does it
    again = replace(results, title="5. Another title").write(tmp_path)
    assert json.loads(again.read_text("utf8")) == {**later, "title": "5. Another title"}
    assert recorded(tmp_path) == {"04_bpr": {**later, "title": "5. Another title"}}


# ---- what is not ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (json.dumps(FILE).encode()[:300], "not valid JSON"),
        (json.dumps(FILE).encode() + b"{}", "not valid JSON"),
        (b"\0" * 300, "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"null", "not the results of a chapter named 04_bpr"),
        (b"[]", "not the results of a chapter named 04_bpr"),
        (b"{}", "not the results of a chapter named 04_bpr"),
        (b'{"name": "some package"}', "not the results of a chapter named 04_bpr"),
        (json.dumps({**FILE, "chapter": "04_other"}).encode(), "not the results of a chapter named 04_bpr"),
        (b'{"chapter": "04_bpr"}', "the file has no title, dataset, seed, device, hardware, seconds,"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, content, message):
    path = tmp_path / "04_bpr.json"
    path.write_bytes(content)
    for read in (lambda: ChapterResults.read(path), lambda: recorded(tmp_path)):
        with pytest.raises(ResultsError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: {message}")
        assert str(caught.value).endswith("; run its notebook again")


@pytest.mark.parametrize("key", FILE)
def test_a_missing_field_is_named(tmp_path, key):
    path = written(tmp_path, {name: value for name, value in FILE.items() if name != key})
    with pytest.raises(ResultsError, match=rf"04_bpr\.json: .*({key}|chapter named)"):
        ChapterResults.read(path)


@pytest.mark.parametrize(
    ("part", "key"),
    [("results", key) for key in ROW if key not in {"per_user", "over"}] + [("claims", key) for key in CLAIM],
)
def test_a_missing_field_of_a_part_is_named(part, key):
    data = changed(lambda data: data[part][0].pop(key))
    with pytest.raises(ResultsError, match=rf"^{part}\[0\] has no {key}$"):
        ChapterResults.from_json(data)


WRONG = [
    ({"title": None}, "title is None, not a text"),
    ({"dataset": 1}, "dataset is 1, not a text"),
    ({"seed": True}, "seed is True, not a whole number"),
    ({"seed": 0.5}, "seed is 0.5, not a whole number"),
    ({"device": " "}, "device is ' ', not a text that is not empty"),
    ({"hardware": []}, r"hardware is \[\], not a text"),
    ({"seconds": "12"}, "seconds is '12', not a finite number"),
    ({"seconds": None}, "seconds is None, not a finite number"),
    ({"peak_memory_mb": "much"}, "peak_memory_mb is 'much', not a finite number or null"),
    ({"versions": ["torch"]}, r"versions is \['torch'\], not an object"),
    ({"versions": {"torch": 2}}, "versions: 'torch' is 2, not a text"),
    ({"numbers": []}, r"numbers is \[\], not an object"),
    ({"numbers": {"gain": None}}, "numbers: 'gain' is None, not a finite number"),
    ({"numbers": {"gain": True}}, "numbers: 'gain' is True, not a finite number"),
    ({"numbers": {"gain": "0.25"}}, "numbers: 'gain' is '0.25', not a finite number"),
    ({"headline_numbers": {"gain": 1}}, "headline_numbers: 'gain' is 1, not true or false"),
    ({"headline_numbers": {"other": True}}, "headline_numbers: 'other' is not one of the numbers"),
    ({"numbers": {"bpr": 1}}, "the name 'bpr' stands for more than one value"),
    ({"results": {}}, "results is {}, not a list"),
    ({"results": [1]}, r"results\[0\] is 1, not an object"),
    ({"results": [ROW, ROW]}, "the name 'bpr' stands for more than one value"),
    ({"claims": None}, "claims is None, not a list"),
    ({"claims": [CLAIM, "x"]}, r"claims\[1\] is 'x', not an object"),
    ({"claims": [CLAIM, CLAIM]}, "the claim 'a-beats-b' is made more than once"),
    ({"claims": [{**CLAIM, "chapter": "03_x"}]}, "claim 'a-beats-b': made by '03_x', not by '04_bpr'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_field_of_another_kind_is_named(tmp_path, change, message):
    path = written(tmp_path, {**FILE, **change})
    with pytest.raises(ResultsError, match=rf"04_bpr\.json: {message}; run its notebook again"):
        ChapterResults.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "result 1: name is 1, not a text that is not empty"),
        ({"model": ""}, "result 'bpr': model is '', not a text that is not empty"),
        ({"family": None}, "result 'bpr': family is None"),
        ({"metric": 10}, "result 'bpr': metric is 10"),
        ({"value": None}, "result 'bpr': value is None, not a finite number"),
        ({"value": [0.07]}, r"result 'bpr': value is \[0.07\], not a finite number"),
        ({"low": "0.06"}, "result 'bpr': low is '0.06', not a finite number or null"),
        ({"low": None}, "result 'bpr': its interval has one end only"),
        ({"high": None}, "result 'bpr': its interval has one end only"),
        ({"n": 9.5}, "result 'bpr': n is 9.5, not a whole number"),
        ({"seed": [0, "1"]}, "result 'bpr': seed is .*, not a whole number or a list of them"),
        ({"seed": None}, "result 'bpr': seed is None"),
        ({"fit_seconds": False}, "result 'bpr': fit_seconds is False"),
        ({"headline": 1}, "result 'bpr': headline is 1, not true or false"),
        ({"scoreboard": None}, "result 'bpr': scoreboard is None, not true or false"),
        ({"deterministic": "no"}, "result 'bpr': deterministic is 'no', not true or false"),
    ],
)
def test_a_result_of_another_kind_is_named(change, message):
    with pytest.raises(ResultsError, match=f"^{message}"):
        ChapterResults.from_json({**FILE, "results": [{**ROW, **change}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "perhaps"}, "verdict 'perhaps' is not one of holds, fails, depends"),
        ({"verdict": ""}, "verdict '' is not one of"),
        ({"verdict": ["holds"]}, r"verdict is \['holds'\], not a text"),
        ({"evidence": None}, "evidence is None, not a text"),
        ({"evidence": ""}, "evidence must not be empty"),
        ({"statement": " ", "evidence": "\n"}, "statement and evidence must not be empty"),
        ({"condition": ""}, "condition must not be empty"),
    ],
)
def test_a_claim_of_another_kind_is_named(change, message):
    with pytest.raises(ResultsError, match=f"^claim 'a-beats-b': {message}"):
        ChapterResults.from_json({**FILE, "claims": [{**CLAIM, **change}]})


@pytest.mark.parametrize("verdict", VERDICTS)
def test_only_what_depends_needs_a_condition(verdict):
    whole = {**CLAIM, "verdict": verdict}
    assert Claim(**whole).verdict == verdict
    if verdict != "depends":
        assert Claim(**{**whole, "condition": ""}).condition == ""


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(tmp_path, token):
    places = [
        lambda data: data["numbers"].update(gain="@"),
        lambda data: data["results"][0].update(value="@"),
        lambda data: data.update(seconds="@"),
        lambda data: data.update(a_later_field=[{"deep": "@"}]),
    ]
    for place in places:
        text = json.dumps(changed(place)).replace('"@"', token)
        path = tmp_path / "04_bpr.json"
        path.write_text(text, encoding="utf8")
        with pytest.raises(ResultsError, match=rf"04_bpr\.json: it holds {token}, which is not finite"):
            ChapterResults.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_what_is_not_finite_cannot_be_made_either(value):
    for change in ({"numbers": {"gain": value}}, {"seconds": value}, {"results": [{**ROW, "high": value}]}):
        with pytest.raises(ResultsError, match="not a finite number"):
            ChapterResults.from_json({**FILE, **change})


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ResultsError) as caught:
        ChapterResults.from_json({**FILE, "numbers": {"gain": "x" * 10_000}})
    assert len(str(caught.value)) < 200


def test_one_damaged_file_among_others_is_the_one_that_is_named(tmp_path):
    for name in ("01_a", "02_b", "03_c"):
        written(tmp_path, {**FILE, "chapter": name, "claims": []}, name)
    path = tmp_path / "02_b.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ResultsError, match=r"02_b\.json: not valid JSON"):
        recorded(tmp_path)
