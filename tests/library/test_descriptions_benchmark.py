"""The benchmark of descriptions on a few made-up films, its rules by hand, and its recorded run."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.cold_items import ColdItems
from recsys_lib.data import Interactions, descriptions
from recsys_lib.draws import Draws
from recsys_lib.models import ItemFeatureRidge

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "descriptions.json"
N_USERS, N_ITEMS = 40, 60


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "descriptions.py"
    spec = importlib.util.spec_from_file_location("benchmark_descriptions", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of its classes are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Letters:
    """Counts of letters in place of an encoder."""

    name, dim = "letters", 26

    def encode(self, texts, progress=True):
        counts = [[text.lower().count(chr(97 + letter)) for letter in range(26)] for text in texts]
        return torch.tensor(counts, dtype=torch.float32)


@pytest.fixture(scope="module")
def films(benchmark):
    """Films of two kinds, which their descriptions tell and their titles do not; every fifth has none."""
    names = ["Ann Actor", "Bob Player", "Cy Lead", "Di Star"]
    rows, records = [], []
    for item in range(N_ITEMS):
        kind, year = ("river", "desert")[item % 2], 1990 + item % 9
        title = f"The Story {chr(65 + item // 26)}{chr(65 + item % 26)}"
        rows.append((title, year, ("Drama",) if item % 3 else ("Comedy", "Drama")))
        if item % 5:
            extract = (
                f"{title} is a {year} American drama film directed by {names[item % 2]} and starring "
                f"{names[2 + item % 2]}. It shows a {kind}, one {kind} after another {kind}."
            )
            record = {"title": title, "year": year, "cast": [names[2 + item % 2]], "genres": ["Drama"]}
            records.append({**record, "href": title.replace(" ", "_"), "extract": extract})
    items = pd.DataFrame(rows, columns=["title", "year", "genres"])
    items["text"] = [f"{title} ({year})." for title, year, _ in rows]
    found = descriptions._describe(items, records)
    assert found["text"].notna().sum() == 48
    return benchmark.Films(items, found, Letters(), Letters())


@pytest.fixture(scope="module")
def positives() -> Interactions:
    """A user likes films of one kind, some of them more than others."""
    likes = torch.rand(N_USERS, N_ITEMS, generator=torch.Generator().manual_seed(0))
    likes = likes < torch.linspace(0.2, 0.9, N_ITEMS)
    same = torch.arange(N_USERS)[:, None] % 2 == torch.arange(N_ITEMS) % 2
    users, items = (likes & same).nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": 5.0, "timestamp": range(len(users))})
    return Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))


@pytest.fixture(scope="module")
def found(benchmark, films, positives):
    small = {"n_draws": 3, "share": 0.2, "rounds": 1, "penalties": (1.0, 3.0, 10.0, 30.0, 100.0)}
    return benchmark.run(films, positives, **small)


def test_the_benchmark_measures_what_the_recorded_run_measured(benchmark, found):
    recorded = RecordedRun.read(RECORDED)
    values = found["values"]
    kept = dict(recorded.values)
    assert values.keys() == kept.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert values["draws"].keys() == kept["draws"].keys()
    for key in ("differences", "fame", "rows"):
        names = [
            {(row.get("name"), row.get("a"), row.get("b")) for row in run[key]} for run in (values, kept)
        ]
        assert names[0] == names[1]
        assert {*values[key][0]} == {*kept[key][0]}
    assert values["warm"].keys() == kept["warm"].keys()
    assert "processor time" in benchmark.table(found)
    assert all(code_hash(name) for name in benchmark.CODE)


def test_what_descriptions_alone_tell_is_found(found):
    draws = Draws(found["values"]["draws"])
    told = "title, genres, description, its words"
    assert draws.mean(told).mean > draws.mean("title, genres").mean + 0.1
    assert draws.mean(told).mean > draws.mean("another film's description").mean + 0.1
    assert draws.mean("without the title").mean == pytest.approx(draws.mean(told).mean, abs=0.1)
    for row in found["values"]["rows"]:
        assert row["mean"] == pytest.approx(draws.mean(row["name"]).mean, abs=1e-4)


def test_its_scores_are_those_of_the_model(benchmark, films, positives):
    cold = ColdItems(positives, 1, 0.2, device="cpu")
    draw = cold.draw(0)
    kinds = {"words": films.words(films.descriptions), "genre and year": films.genre_and_year}
    for power in (0.0, 1.0):
        found = benchmark.Ridge(cold).build(draw, kinds=kinds, l2=5.0, power=power)
        model = ItemFeatureRidge(kinds, l2=5.0, power=power).fit(draw.events, device="cpu", progress=False)
        expected = model.score(torch.arange(N_USERS))
        assert torch.allclose(found[:, draw.items], expected[:, draw.items], atol=1e-4)


def test_names_are_taken_out(benchmark):
    text = (
        "Alien is a 1979 film directed by Ridley Scott and written by Dan O'Bannon. Alien stars Sigourney "
        "Weaver as Ripley. Scott shot the aliens in England; Weaver was new."
    )
    assert benchmark.directors(text) == ["Ridley Scott"]
    people = benchmark.without_people(text, ["Sigourney Weaver", "(voices)"])
    for name in ("Ridley", "Scott", "Sigourney", "Weaver", "O'Bannon"):
        assert name not in people
    assert "Ripley" in people
    assert "England" in people
    anonymous = benchmark.without_title(text, ("Alien", "Alien"))
    assert anonymous.startswith("the film is a 1979 film")
    assert "aliens" in anonymous  # another word
    two = benchmark.directors("Fargo is a 1996 film directed by Joel Coen, and Ethan Coen. It was a success.")
    assert two == ["Joel Coen", "Ethan Coen"]
    assert benchmark.directors("A film about a director.") == []


def test_a_line_is_taken_out_of_scores(benchmark):
    line = torch.tensor([0.0, 1.0, 2.0, 3.0])
    rest = torch.tensor([[1.0, -1.0, -1.0, 1.0]])  # has no part of the line
    assert torch.allclose(benchmark.left_over(5 + 3 * line + rest, line), rest, atol=1e-5)
    assert torch.isfinite(benchmark.left_over(rest, torch.ones(4))).all()


def test_among_films_alike_fame_tells_nothing(benchmark):
    generator = torch.Generator().manual_seed(0)
    chance = torch.linspace(0.05, 0.6, 80)
    liked = torch.rand(300, 80, generator=generator) < chance
    by_fame = benchmark.among_alike(chance.expand(300, -1), liked)
    assert by_fame == pytest.approx(0.5, abs=0.04)
    assert benchmark.among_alike(liked.float(), liked) == 1
    assert benchmark.among_alike(torch.zeros(300, 80), liked) == pytest.approx(0.5)


def test_likes_are_predicted_from_features(benchmark):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    counts = (2 + x[:, 0]).exp().round()
    known = torch.arange(60) < 45
    kernel = benchmark.Features(x, unit=False).kernel()
    new = (~known).nonzero()[:, 0]
    guess, explained = benchmark.predicted_likes(kernel, known, counts, new)
    assert torch.corrcoef(torch.stack([guess, counts[new].log1p()]))[0, 1] > 0.9
    assert 0.8 < explained < 1
    noise = benchmark.Features(torch.randn(60, 3, generator=generator), unit=False).kernel()
    assert benchmark.predicted_likes(noise, known, counts, new)[1] < 0.2


def test_the_recorded_means_are_those_of_the_draws(benchmark):
    recorded = RecordedRun.read(RECORDED)
    values = dict(recorded.values)
    draws = Draws(values["draws"])
    for row in values["rows"]:
        assert row["mean"] == pytest.approx(draws.mean(row["name"]).mean, abs=2e-5)
        assert row["minus"]["mean"] == pytest.approx(
            draws.compare(row["name"], benchmark.BASE).mean, abs=3e-5
        )
    for gap in values["differences"]:
        assert gap["mean"] == pytest.approx(draws.compare(gap["a"], gap["b"]).mean, abs=3e-5)
    assert len(draws.frame) == 8
    assert values["films"] == 1682
