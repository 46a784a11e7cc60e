"""The harness that measures beside other libraries, with a peer that is a script of the test."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import environments, measure
from benchmarks.peers.__main__ import CODE, run, table, tiny
from benchmarks.peers.harness import Bench
from benchmarks.peers.plan import FOLDER, OURS, RUNNERS, Contender, Library, Plan, full
from benchmarks.peers.shape import like_movielens
from recsys_lib.chapter.runs import code_hash
from recsys_lib.data import leave_last_out, load_movielens, random_split
from recsys_lib.evaluation import evaluate
from recsys_lib.models import Popularity

ROOT = Path(__file__).resolve().parents[2]

PEER = """
import json, sys, time
from pathlib import Path
import numpy as np

job = json.loads(Path(sys.argv[1]).read_text())
out = Path(job["out"])
out.mkdir(parents=True)
with open(Path(__file__).with_suffix(".calls"), "a") as calls:
    calls.write(job["model"] + "\\n")
events = np.load(job["events"])
counts = np.bincount(events["items"], minlength=int(events["n_items"])).astype(np.float32)
scores = np.tile(counts, (int(events["n_users"]), 1))
if job["model"] == "Raises":
    raise RuntimeError("no such luck")
if job["model"] == "Hangs":
    time.sleep(600)
if job["model"] == "Silent":
    sys.exit(0)
if job["model"] == "Shape":
    scores = scores[:, 1:]
if job["model"] == "NotFinite":
    scores[0, 0] = np.nan
if job["model"] == "NoVersions":
    (out / "result.json").write_text("{}")
    sys.exit(0)
fits = []
for number, fit in enumerate(job["fits"]):
    np.save(out / f"scores_{number}_0.npy", scores * fit["options"].get("sign", 1))
    spent = {"cpu_s": 0.5, "wall_s": 0.5}
    fits.append({"fit": spent, "peak_mb": 1.0, "looks": [{"epochs": 1, **spent}]})
result = {"fits": fits, "loaded_mb": 0.5, "peak_mb": 1.0, "versions": {"fake": "1.0"}}
(out / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def library(tmp_path):
    runner = tmp_path / "peer.py"
    runner.write_text(PEER)
    return Library("fake", "peer", runner)


def bench_of(library, folder, contenders, limit=30.0, **options):
    made = {"peer": environments.Environment("peer", Path(sys.executable))}
    return Bench(Plan({"fake": library}, quality=contenders, limit=limit), folder / "state", made, **options)


@pytest.fixture(scope="module")
def split():
    return leave_last_out(tiny(), n=0.2)


def test_a_peer_that_fails_in_any_way_is_reported_and_loses_nothing(library, tmp_path, split):
    bad = ["Raises", "Hangs", "Silent", "Shape", "NotFinite", "NoVersions"]
    bench = bench_of(library, tmp_path, [Contender("fake", name) for name in [*bad, "Popularity"]], limit=1.5)
    rows = measure.quality(bench, split)["rows"]
    assert [row["model"] for row in rows] == ["Popularity"]
    own = evaluate(
        Popularity().fit(split.history, progress=False),
        split.test,
        seen=split.history,
        metrics=["ndcg"],
        progress=False,
    )
    assert rows[0]["ndcg@10"]["value"] == pytest.approx(own.metrics["ndcg@10"], abs=0.02)  # ties alone
    assert rows[0]["fit_cpu_s"] == [0.5]
    failed = bench.failed()
    assert failed.keys() == {f"tune/fake/{name}" for name in bad}
    assert "no such luck" in failed["tune/fake/Raises"]
    assert "not done within" in failed["tune/fake/Hangs"]
    assert "without a result" in failed["tune/fake/Silent"]
    assert "is (60, 39), not (60, 40)" in failed["tune/fake/Shape"]
    assert "not finite" in failed["tune/fake/NotFinite"]


def test_a_run_goes_on_where_it_was(library, tmp_path, split):
    calls = library.runner.with_suffix(".calls")
    contenders = [Contender("fake", "Popularity"), Contender("fake", "Raises")]

    def again(**options):
        bench = bench_of(library, tmp_path, contenders, **options)
        found = measure.quality(bench, split)["rows"]
        bench.close()
        return found, bench.failed()

    first, _ = again()
    assert calls.read_text().split() == ["Popularity", "Popularity", "Raises"]
    rows, failed = again()
    assert rows == first
    assert len(calls.read_text().split()) == 3
    assert failed.keys() == {"tune/fake/Raises"}
    again(retry=True)
    assert calls.read_text().split()[3:] == ["Raises"]
    library.runner.write_text(PEER + "\nprint()\n")  # other code is another measurement
    again(only=["test/"])
    assert len(calls.read_text().split()) == 4  # nothing but what was asked for; the tuning was not
    again(skip=["fake"])
    assert len(calls.read_text().split()) == 4


def test_two_runs_are_not_in_one_folder(library, tmp_path):
    first = bench_of(library, tmp_path, [])
    with pytest.raises(BlockingIOError):
        bench_of(library, tmp_path, [])
    first.close()
    bench_of(library, tmp_path, [])


def test_the_better_setting_is_found_and_the_second_grid_goes_beyond_the_end(library, tmp_path, split):
    contender = Contender("fake", "Popularity", {"sign": [-1.0, 1.0, 2.0]})
    bench = bench_of(library, tmp_path, [contender])
    found = measure.quality(bench, split)
    assert found["rows"][0]["options"]["sign"] == 1.0  # the first of equals, and not at an end
    assert found["rows"][0]["trials"] == 3
    assert not found["rows"][0]["edges"]


def test_grids():
    contender = Contender("x", "M", {"a": [1.0, 2.0, 4.0], "k": [10, 20]}, limits={"a": (0.0, 6.0)})
    points = measure.grid(contender, 100)
    assert len(points) == 6
    drawn = measure.grid(contender, 4)
    assert len({tuple(point.values()) for point in drawn}) == 4
    assert all(point in points for point in drawn)
    more, edges = measure.beyond(contender, points, {"a": 4.0, "k": 10}, 4)
    assert edges == ["k"]  # what lies beyond 4 is above the limit
    assert [point["k"] for point in more] == [5, 2]
    more, edges = measure.beyond(contender, points, {"a": 1.0, "k": 20}, 3)
    assert edges == ["a", "k"]
    assert more == [{"a": 0.5, "k": 20}, {"a": 1.0, "k": 40}, {"a": 0.25, "k": 20}]
    assert measure.beyond(contender, points, {"a": 2.0, "k": 10}, 4)[1] == ["k"]


def test_an_environment_that_cannot_be_made_is_reported_with_what_pip_said(tmp_path):
    (tmp_path / "none.txt").write_text("--no-index\nno-package-of-this-name==1\n")
    made = environments.make("none", tmp_path / "envs", tmp_path)
    assert made.python is None
    assert "no-package-of-this-name" in made.problem
    assert not (tmp_path / "envs" / "none" / "complete.json").exists()


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    made = environments.make("empty", tmp_path / "envs", tmp_path)
    assert made.python is not None
    assert made.python.exists()
    monkeypatch.setattr(environments.venv, "create", lambda *_, **__: pytest.fail("made again"))
    assert environments.make("empty", tmp_path / "envs", tmp_path) == made
    (tmp_path / "empty.txt").write_text("# something else\n")
    with pytest.raises(pytest.fail.Exception):
        environments.make("empty", tmp_path / "envs", tmp_path)


def test_the_book_s_own_library_is_looked_at_without_being_disturbed(tmp_path, split):
    """Scores at the last look are those of a training that was not looked at; and looks differ."""
    own = Library(OURS, None, RUNNERS / "run_ours.py")
    bench = Bench(Plan({OURS: own}, limit=120.0), tmp_path)
    events = measure.write_events(tmp_path / "train.npz", split.train)
    fit = {"options": {"dim": 4}, "seed": 1, "epochs": 4}
    job = {"task": "fit", "model": "BPR", "events": str(events)}
    job["fits"] = [{**fit, "every": 2}, {**fit, "every": 0}]

    def judge(result, folder):
        looks = [[look["epochs"] for look in one["looks"]] for one in result["fits"]]
        half, whole, plain = (np.load(folder / f"scores_{name}.npy") for name in ("0_0", "0_1", "1_0"))
        return {
            "looks": looks,
            "same": bool(np.array_equal(whole, plain)),
            "moved": bool(np.abs(whole - half).max() > 1e-4),
        }

    kept = bench.cell("own", own, job, judge, [events])
    assert not bench.failed()
    assert kept["looks"] == [[2, 4], [4]]
    assert kept["same"]
    assert kept["moved"]
    assert kept["process"]["peak_mb"] > 50


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
import common
import numpy as np

start = common.peak_mb()
np.ones(2**25)
high = common.peak_mb()
common.forget_peak()
print(start, high, common.peak_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system cannot forget a peak")
def test_the_memory_of_a_process_is_not_that_of_its_parent():
    held = np.ones(2**26)  # 512 MB
    done = subprocess.run([sys.executable, "-c", PEAK, RUNNERS], capture_output=True, text=True, check=True)
    start, high, after = map(float, done.stdout.split())
    assert start < held.nbytes / 2**20 / 2
    assert 200 < high - start < 300
    assert after < start + 50


def top_tenth(counts):
    """The share of all events that the greatest tenth of the counts has."""
    return counts.sort().values[-(len(counts) // 10) :].sum() / counts.sum()


def test_made_up_events_are_shaped_as_movielens():
    events = like_movielens(1_000, 2_000, 20_000, seed=1)
    assert len(events) == 20_000
    assert len((events.users * 2_000 + events.items).unique()) == 20_000
    assert torch.equal(events.users, like_movielens(1_000, 2_000, 20_000, seed=1).users)
    theirs = load_movielens("100k", progress=False).interactions
    for made, true in ((events.users, theirs.users), (events.items, theirs.items)):
        shares = [float(top_tenth(torch.bincount(of))) for of in (made, true)]
        assert shares[0] == pytest.approx(shares[1], abs=0.05)
    with pytest.raises(ValueError, match="too many"):
        like_movielens(10, 10, 90)


@pytest.mark.slow
def test_the_smoke_runs_every_stage_with_the_book_s_own_library(tmp_path):
    from benchmarks.peers.plan import smoke

    found = run(Bench(smoke(), tmp_path), small=True)
    values = found["values"]
    assert not values["failed"]
    assert {row["model"] for row in values["quality"]} == {"Popularity", "EASE", "BPR"}
    assert values["ratings"][0]["rmse"]["value"] > 0
    assert values["evaluators"]["agreement"][0]["ndcg"] < 1e-6
    assert len(values["epoch_of_bpr"][0]["cpu_s"]["all"]) == 2 * measure.INNER
    assert values["served"][0]["fit_and_lists_cpu_s"]["median"] > 0
    assert "EASE" in table(values)
    json.dumps(values, allow_nan=False)


def test_ratings_that_go_on_are_tuned_no_further(tmp_path):
    from benchmarks.peers.plan import smoke

    split = random_split(tiny(), (0.7, 0.1, 0.2), seed=0)
    bench = Bench(smoke(), tmp_path)
    first = measure.ratings(bench, split)
    assert first[0]["trials"] == 3  # two, and one beyond the end
    assert measure.ratings(bench, split) == first


def test_the_plan_names_what_is_there():
    plan = full()
    names = {of.library for of in (*plan.quality, *plan.ratings)} | {row[0] for row in plan.served}
    assert names | set(plan.evaluators) | set(plan.ranking) <= plan.libraries.keys()
    for library in plan.libraries.values():
        assert library.runner.is_file()
        assert (
            library.environment is None or (FOLDER / "requirements" / f"{library.environment}.txt").is_file()
        )
    assert all(script.is_file() for script in plan.faults.values())
    keys = [of.key for of in plan.quality]
    assert len(keys) == len(set(keys))
    for model in {of.model for of in plan.quality}:  # the same number of trials for all that have it
        assert len({of.budget for of in plan.quality if of.model == model}) == 1
    assert all(code_hash(name) for name in CODE)
    for file in (FOLDER / "requirements").glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert all("==" in line for line in lines)
    for file in RUNNERS.glob("*.py"):
        own = file.name in ("run_ours.py",)
        assert own or "recsys_lib" not in file.read_text()
        assert "pickle" not in file.read_text().replace("allow_pickle=False", "").replace("never pickled", "")


def test_spread_keeps_every_repetition():
    found = measure.spread([{"cpu_s": 3.0}, {"cpu_s": 1.0}, {"cpu_s": 2.0}])
    assert found == {"median": 2.0, "low": 1.0, "high": 3.0, "all": [3.0, 1.0, 2.0]}
    assert math.isfinite(found["median"])
