"""Several processes: they learn what one learns, outlive a killed worker, and embed each item once."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from recsys_lib.distributed import (
    SASRecInShares,
    TwoTowerInShares,
    embed_catalog,
    everyones,
    gpu_each,
    joined_sum,
    missing_shards,
    place,
    processes,
    shard_name,
)
from recsys_lib.distributed import embed as embed_program
from recsys_lib.distributed import train as program
from recsys_lib.losses import in_batch_softmax_loss

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds, after which a launch is ended
TOWERS = ["--model", "two-tower", "--dataset", "made-up", "--batch", "32", "--epochs", "2", "--every", "5"]
SASREC = ["--model", "sasrec", "--dataset", "made-up", "--batch", "8", "--epochs", "2"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def accelerate() -> list[str]:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", str(port), "-m"]
    return ["accelerate.commands.launch", *options]


def launch(*command: str) -> tuple[int, str]:
    """The status of a command, and what it said; it and all that it has started end after a while."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        raise
    return started.returncode, said


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text("utf8"))


@pytest.fixture(scope="module")
def two_towers(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("two")
    status, said = launch(*TORCHRUN, "recsys_lib.distributed.train", *TOWERS, "--folder", str(folder))
    assert status == 0, said
    return result(folder)


def alone(folder: Path, *options: str) -> dict:
    """The same program, in this process."""
    program.main([*options, "--folder", str(folder)])
    return result(folder)


def assert_same(two: dict, one: dict) -> None:
    assert (two["processes"], one["processes"]) == (2, 1)
    assert len(two["curve"]) == len(one["curve"]) > 5
    torch.testing.assert_close(
        torch.tensor(two["curve"][:5]), torch.tensor(one["curve"][:5]), atol=1e-5, rtol=0
    )
    assert abs(two["ndcg@10"]["mean"] - one["ndcg@10"]["mean"]) < 0.02


def test_two_processes_learn_two_towers_as_one_with_the_joined_batch(two_towers, tmp_path):
    assert_same(two_towers, alone(tmp_path, *TOWERS))
    lonely = alone(tmp_path / "lonely", *TOWERS, "--alone")
    assert abs(lonely["curve"][0] - two_towers["curve"][0]) > 0.1  # fewer negatives are another loss


def test_accelerate_launches_sasrec_on_two_processes(tmp_path):
    folder = tmp_path / "two"
    status, said = launch(*accelerate(), "recsys_lib.distributed.train", *SASREC, "--folder", str(folder))
    assert status == 0, said
    assert_same(result(folder), alone(tmp_path / "one", *SASREC))


def test_a_killed_worker_ends_the_run_which_then_goes_on_to_the_same_weights(two_towers, tmp_path):
    command = [*TORCHRUN, "recsys_lib.distributed.train", *TOWERS, "--folder", str(tmp_path)]
    status, said = launch(*command, "--kill", "1", "13")
    assert status != 0
    assert "SIGKILL" in said
    assert "rank      : 1" in said
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoint.pt").exists()
    status, said = launch(*command)
    assert status == 0, said
    again = result(tmp_path)
    assert again["first_step"] == 10  # the last checkpoint before the step that was not taken
    assert again["weights_sha256"] == two_towers["weights_sha256"]
    assert again["curve"] == two_towers["curve"][10:]
    assert not (tmp_path / "checkpoint.pt").exists()


def test_dropout_is_the_same_after_a_resumption(tmp_path):
    events, options = program.made_up(), {"shares": 2, "batch_size": 8, "epochs": 2, "dropout": 0.3}
    whole = SASRecInShares(**options).fit(events, device="cpu", progress=False)

    class DiedError(Exception):
        pass

    class Dies(SASRecInShares):
        def loss_of(self, *arguments):
            if len(self.curve) == 13:
                raise DiedError
            return super().loss_of(*arguments)

    with pytest.raises(DiedError):
        Dies(**options).kept_in(tmp_path, every=5).fit(events, device="cpu", progress=False)
    again = Dies(**options).kept_in(tmp_path, every=5).fit(events, device="cpu", progress=False)
    assert min(again.curve) == 10
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_alone_each_share_knows_its_own_negatives():
    events, generator = program.made_up(), torch.Generator().manual_seed(0)
    losses = {}
    for gather in (True, False):
        model = TwoTowerInShares(gather=gather, epochs=1, batch_size=32).fit(
            events, device="cpu", progress=False
        )
        examples = model.prepare(events, generator.manual_seed(0))
        rows = model.rows(examples).with_format("arrow")
        losses[gather], n = model.loss_of([rows[:6], rows[100:106]], examples, generator)
        assert n == 12
    scores = []  # of the last model, which is the one that was alone
    with torch.no_grad():
        chosen = torch.cat([torch.tensor(rows[a : a + 6]["item"].to_pylist()) for a in (0, 100)])  # (12,)
        lists = rows[:6]["history"].to_pylist() + rows[100:106]["history"].to_pylist()
        users = model.encode_users(lists)  # (12, d)
        scores = users @ model.scaled(model.item(chosen)).mT / model.temperature  # (12, 12)
        parts = [
            in_batch_softmax_loss(scores[at, at], chosen[at], examples.log_q[chosen[at]])
            for at in (slice(0, 6), slice(6, 12))
        ]
    torch.testing.assert_close(losses[False].detach(), torch.stack(parts).mean(), rtol=1e-4, atol=1e-5)
    assert losses[True] > losses[False] + 0.1


def test_the_rows_of_two_towers_are_items_and_what_came_before():
    events = program.made_up(n_users=3, n_events=4)
    model = TwoTowerInShares(shares=1, epochs=1, batch_size=2, max_history=2)
    model.fit(events, device="cpu", progress=False)
    rows = model.rows(model.prepare(events, torch.Generator().manual_seed(0)))
    of_first = events.items[events.users == 0].tolist()
    assert rows[:3]["history"] == [of_first[:1], of_first[:2], of_first[1:3]]
    assert rows[:3]["item"] == of_first[1:]


def test_one_process_is_alone():
    x = torch.ones(2, 3, requires_grad=True)
    assert everyones(x) is x
    assert place() == (0, 1)
    assert joined_sum(2.5, torch.device("cpu")) == 2.5


@pytest.mark.parametrize(
    ("gpus", "started", "each"), [(0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True)]
)
def test_processes_take_gpus_only_if_each_has_its_own(monkeypatch, gpus, started, each):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(started))
    assert gpu_each() == each
    if not each:
        with pytest.raises(ValueError, match="needs a GPU for each process"), processes(device="cuda"):
            pass


def test_shares_that_do_not_fit_are_refused():
    events = program.made_up()
    with pytest.raises(ValueError, match="fewer than batch_size=5000"):
        TwoTowerInShares(batch_size=5000).fit(events, device="cpu", progress=False)
    with pytest.raises(ValueError, match="learns with user_tower='history_mean' alone"):
        TwoTowerInShares(user_tower="id")


# A catalog.


def letters(texts: list[str]) -> torch.Tensor:
    """(N, 2): the length of a text, and how many letters e."""
    return torch.tensor([[len(text), text.count("e")] for text in texts], dtype=torch.float32)


@pytest.fixture(scope="module")
def items() -> Dataset:
    return embed_program.made_up_items(103)


def numbers(folder: Path) -> list[int]:
    files = sorted(folder.glob("*.parquet"))
    return [number for file in files for number in pq.read_table(file)["item"].to_pylist()]


def test_workers_make_each_shard_once_whatever_their_number(items, tmp_path):
    made = [
        list(embed_catalog(items, letters, tmp_path, n_shards=7, rank=rank, world=3)) for rank in range(3)
    ]
    assert [[number for number, *_ in part] for part in made] == [[0, 3, 6], [1, 4], [2, 5]]
    assert numbers(tmp_path) == list(range(103))
    table = pq.read_table(tmp_path / shard_name(3, 7))
    assert table.column_names == ["item", "vector"]
    first = table["item"][0].as_py()
    torch.testing.assert_close(torch.tensor(table["vector"][0].as_py()), letters([items[first]["text"]])[0])
    assert list(embed_catalog(items, letters, tmp_path, n_shards=7)) == []  # all is done


def test_a_killed_worker_loses_no_shard_and_doubles_none(tmp_path):
    command = ["--made-up", "200", "--shards", "8", "--folder", str(tmp_path)]
    status, _ = launch("recsys_lib.distributed.embed", *command, "--kill", "0", "3")
    assert status == -signal.SIGKILL
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    assert sorted(before) == [shard_name(number, 8) for number in range(3)]
    assert missing_shards(tmp_path, 8) == [3, 4, 5, 6, 7]
    embed_program.main(command)
    assert numbers(tmp_path) == list(range(200))
    assert all((tmp_path / name).stat().st_mtime_ns == then for name, then in before.items())


def test_a_shard_under_way_when_its_worker_fails_is_not_there(items, tmp_path):
    def fails(texts):
        if any(text == items[40]["text"] for text in texts):
            raise RuntimeError("the encoder ran out of memory")
        return letters(texts)

    with pytest.raises(RuntimeError, match="out of memory"):
        list(embed_catalog(items, fails, tmp_path, n_shards=7, batch_size=5))
    there = [file.name for file in tmp_path.iterdir()]
    assert sorted(there) == [shard_name(number, 7) for number in range(2)]  # and no half a file


def test_cuts_do_not_mix(items, tmp_path):
    list(embed_catalog(items, letters, tmp_path, n_shards=2))
    with pytest.raises(ValueError, match="of another number of shards than 3"):
        list(embed_catalog(items, letters, tmp_path, n_shards=3))
    with pytest.raises(ValueError, match="103 items cannot be cut into 104 shards"):
        list(embed_catalog(items, letters, tmp_path, n_shards=104))
    with pytest.raises(ValueError, match="worker 2 is not one of 2"):
        list(embed_catalog(items, letters, tmp_path, n_shards=2, rank=2, world=2))
