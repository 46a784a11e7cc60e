"""The benchmark of hidden instructions: its prompts, a small run with a random model, and its record."""

from pathlib import Path
from typing import Any

from benchmarks import hidden_instructions as benchmark
from benchmarks import language_model
from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.data import load_movielens

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "hidden_instructions.json"


def shape(value: Any) -> Any:
    """The names in a run, without the numbers."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


def test_only_the_target_s_line_is_written_to_and_cutting_takes_the_order_out() -> None:
    titles, texts = [f"Film {i}" for i in range(40)], [f"Film {i} (1999). Genres: Drama." for i in range(40)]
    one = {"likes": [30, 31], "films": list(range(20)), "target": 2}
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


def test_nobody_is_asked_about_a_film_that_was_rated() -> None:
    data = load_movielens("100k", progress=False)
    asked = benchmark.people(data, 15, seed=2)
    pairs = set(zip(data.interactions.users.tolist(), data.interactions.items.tolist(), strict=True))
    rated = {}
    for user, item in pairs:
        rated.setdefault(user, set()).add(item)
    for one in asked:
        assert len(set(one["films"])) == 20
        assert 0 <= one["target"] < 20
        owners = [user for user, films in rated.items() if set(one["likes"]) <= films]
        assert any(not rated[user] & set(one["films"]) for user in owners)


def test_a_small_run_has_the_layout_of_the_recorded_one(tmp_path: Path) -> None:
    texts = load_movielens("100k", progress=False).items["text"].tolist()
    folder = language_model.small_model(tmp_path / "model", texts)
    found = benchmark.run(folder, n=2)
    recorded = RecordedRun.read(RECORDED)
    assert shape(found["values"]) == shape(recorded.values)
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"]["ratings"] == recorded.inputs["ratings"]
    assert all(code_hash(name) for name in benchmark.CODE)
    by_name = {row["name"]: row for row in found["values"]["variants"]}
    assert by_name["as it is"]["minus as it is"]["mean"] == 0.0
