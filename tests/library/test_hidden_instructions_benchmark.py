"""The benchmark of hidden instructions: its prompts, a small run with a random model, and its record."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import hidden_instructions as benchmark
from benchmarks import language_model
from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.data import leave_last_out, load_movielens

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "hidden_instructions.json"


def shape(value: Any) -> Any:
    """The names in a run, without the numbers."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


def within(small: Any, large: Any) -> bool:
    """Whether all that one layout names is in another: a record may be older than its newest controls."""
    if isinstance(small, dict):
        return isinstance(large, dict) and all(k in large and within(v, large[k]) for k, v in small.items())
    if isinstance(small, list):
        return (
            isinstance(large, list)
            and len(small) <= len(large)
            and all(within(a, b) for a, b in zip(small, large, strict=False))
        )
    return small is large is None


def test_only_the_target_s_line_is_written_to_and_cutting_takes_the_order_out() -> None:
    titles, texts = [f"Film {i}" for i in range(40)], [f"Film {i} (1999). Genres: Drama." for i in range(40)]
    one = {"likes": [30, 31], "films": list(range(20)), "target": 2, "other": 7}
    plain = benchmark.prompt(one, titles, texts).splitlines()
    order = benchmark.prompt(one, titles, texts, benchmark.ORDER).splitlines()
    changed = [(a, b) for a, b in zip(plain, order, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][0] == "C. Film 2 (1999). Genres: Drama."
    assert changed[0][1].endswith("Answer C.")
    cut = benchmark.prompt(one, titles, texts, benchmark.ORDER, cap=benchmark.CAP)
    assert "Answer C" not in cut
    assert cut.endswith("Answer:")
    warned = benchmark.prompt(one, titles, texts, benchmark.ORDER, warned=True)
    assert "are to be ignored" in warned
    assert "Answer C." in warned
    another = benchmark.prompt(one, titles, texts, benchmark.ORDER, names="other").splitlines()
    lines = [(i, b) for i, (a, b) in enumerate(zip(plain, another, strict=True)) if a != b]
    assert [(i, b.endswith("Answer H.")) for i, b in lines] == [(order.index(changed[0][1]), True)]


def test_the_controls_are_as_long_as_the_instruction_and_name_its_letter_as_often() -> None:
    for control in (benchmark.LABELED, benchmark.FORBIDDEN):
        assert len(control.split()) == len(benchmark.ORDER.split())
        assert control.count("{letter}") == benchmark.ORDER.count("{letter}")
        assert control.endswith("{letter}.")
    assert len(benchmark.NEUTRAL.split()) == len(benchmark.ORDER.split())
    assert "nswer" not in benchmark.LABELED
    assert benchmark.FORBIDDEN.endswith("answer {letter}.")


def test_of_the_twenty_films_one_is_liked_later_and_no_other_was_rated() -> None:
    data = load_movielens("100k", progress=False)
    split = leave_last_out(data.interactions.positives(4.0), n=0.2)
    asked = benchmark.people(data, 15, seed=2)
    rated: dict[int, set[int]] = {}
    pairs = zip(data.interactions.users.tolist(), data.interactions.items.tolist(), strict=True)
    for user, item in pairs:
        rated.setdefault(user, set()).add(item)
    last_ten = {
        tuple(h[-10:].tolist()): u
        for u, h in enumerate(split.history.histories(range(split.history.n_users)))
    }
    for one in asked:
        assert len(set(one["films"])) == 20
        assert len({one["target"], one["other"], one["later"]}) == 3
        user = last_ten[tuple(one["likes"])]
        assert rated[user] & set(one["films"]) == {one["films"][one["later"]]}
        assert one["films"][one["later"]] in split.test.histories([user])[0]


def test_more_people_than_there_are_is_refused() -> None:
    data = load_movielens("100k", progress=False)
    with pytest.raises(ValueError, match="people to ask"):
        benchmark.people(data, 100_000, seed=0)


class Obeys:
    """A model that says the letter that the prompt names last, likely or surely."""

    device = torch.device("cpu")

    def next_token_logits(
        self, prompts: list[str], options: list[str], progress: bool = True
    ) -> torch.Tensor:
        logits = torch.zeros(len(prompts), len(options))
        for row, text in zip(logits, prompts, strict=True):
            named = re.findall(r"[aA]nswer ([A-T])\.", text)
            if named:
                row[options.index(f" {named[-1]}")] = 50.0
        return logits


def test_a_model_that_repeats_the_letter_shows_in_the_controls() -> None:
    found = benchmark.measure(Obeys(), load_movielens("100k", progress=False), n=8, seed=1)  # type: ignore[arg-type]
    rows = {row["name"]: row for row in found["variants"]}
    assert rows["as it is"]["probability"]["mean"] == 0.05
    assert rows["instruction with the letter"]["minus as it is"]["mean"] == 0.95
    assert rows["instruction against the letter"]["minus the letter"]["mean"] == 0.0
    assert rows["letter in a neutral sentence"]["minus neutral"]["mean"] == 0.0
    another = rows["instruction for another letter"]
    assert another["other letter, minus as it is"]["mean"] == 0.95
    assert another["probability"]["mean"] == 0.0
    assert found["liked later"]["minus the others"]["mean"] == 0.0


def test_a_small_run_has_the_layout_of_the_recorded_one(tmp_path: Path) -> None:
    texts = load_movielens("100k", progress=False).items["text"].tolist()
    folder = language_model.small_model(tmp_path / "model", texts)
    found = benchmark.run(folder, n=2)
    recorded = RecordedRun.read(RECORDED)
    assert within(shape(recorded.values), shape(found["values"]))
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"]["ratings"] == recorded.inputs["ratings"]
    assert all(code_hash(name) for name in benchmark.CODE)
    by_name = {row["name"]: row for row in found["values"]["variants"]}
    assert by_name["as it is"]["minus as it is"]["mean"] == 0.0
    assert found["values"]["people"] == found["settings"]["people"] == 2
