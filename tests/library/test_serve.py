"""The service over real HTTP, on this machine's loopback."""

import json
import logging
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
import httpx
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from recsys_lib.data import Interactions
from recsys_lib.models import BPR, EASE, ItemKNN, TwoTower
from recsys_lib.pipeline import Pipeline
from recsys_lib.serve.__main__ import main
from recsys_lib.serve.app import Settings, create_app
from recsys_lib.serve.store import Event, EventStore

N_USERS, N_ITEMS, KINDS = 30, 45, ("drama", "comedy", "war")


def some_events(user=lambda i: f"u{i}", item=lambda i: f"i{i:02}") -> Interactions:
    """Users who mostly choose from one third of the items."""
    rng = np.random.default_rng(0)
    rows = []
    for who in range(N_USERS):
        own = np.arange(who % 3, N_ITEMS, 3)
        chosen = np.unique(np.concatenate([rng.choice(own, 6, replace=False), rng.choice(N_ITEMS, 2)]))
        rows += [(user(who), item(i), 10**9 + t) for t, i in enumerate(rng.permutation(chosen).tolist())]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    users, items = [user(i) for i in range(N_USERS)], [item(i) for i in range(N_ITEMS)]
    return Interactions.from_frame(frame, user_ids=users, item_ids=items)


def table(item=lambda i: f"i{i:02}") -> pd.DataFrame:
    rows = [(item(i), f"Title {i} ☃", 1990 + i % 20, [KINDS[i % 3]]) for i in range(N_ITEMS)]
    return pd.DataFrame(rows, columns=["item_id", "title", "year", "genres"])


@pytest.fixture(scope="module")
def inter() -> Interactions:
    return some_events()


def make(inter: Interactions, **options) -> Pipeline:
    options = {"reranker": ItemKNN(), "items": table(), "n_candidates": 15} | options
    return Pipeline(EASE(l2=5.0), **options).fit(inter, progress=False)


@pytest.fixture(scope="module")
def pipeline(inter) -> Pipeline:
    return make(inter)


@contextmanager
def served(folder: Path, events: Path, **options) -> Iterator[httpx.Client]:
    """A running service, and a client for it; ``client.app`` is what runs."""
    app = create_app(Settings(folder, events, **({"reload_seconds": 0} | options)))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, access_log=False, log_config=None, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            client.app = app
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "shop"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory) -> Iterator[httpx.Client]:
    with served(folder, tmp_path_factory.mktemp("events") / "events.sqlite") as client:
        yield client


def ids(reply: httpx.Response) -> list:
    assert reply.status_code == 200, reply.text
    assert [one["rank"] for one in reply.json()["items"]] == list(range(1, len(reply.json()["items"]) + 1))
    return [one["item"] for one in reply.json()["items"]]


# Lists.


def test_a_user_gets_the_list_of_the_pipeline(client, pipeline, inter):
    reply = client.post("/recommend", json={"user": "u4", "k": 6})
    wanted = pipeline.recommend_frame(["u4"], 6, exclude=inter)
    assert ids(reply) == wanted["item_id"].tolist()
    found = reply.json()
    assert [one["score"] for one in found["items"]] == pytest.approx(wanted["score"].tolist(), rel=1e-5)
    assert found["basis"] == "user"
    assert found["new_events"] == 0
    assert set(found["milliseconds"]) == {"retrieve", "rerank", "filter", "diversify"}
    assert found["items"][0]["about"]["title"].startswith("Title ")


def test_a_history_gets_the_list_of_the_pipeline(client, pipeline):
    history = ["i03", "i06", "i20"]
    reply = client.post("/recommend", json={"history": history})
    assert ids(reply) == pipeline.recommend_histories([history], 10)["item_id"].tolist()
    again = ids(client.post("/recommend", json={"history": history, "repeat": True, "k": 45}))
    assert set(history) <= set(again)
    assert not set(history) & set(ids(client.post("/recommend", json={"history": history, "k": 45})))


def test_nobody_in_particular_gets_what_is_popular(client, inter):
    reply = client.post("/recommend", json={"history": [], "k": 3, "exclude": ["i00"], "at_most": 1})
    count = inter.to_frame()["item_id"].value_counts()
    assert reply.json()["basis"] == "popular"
    found = ids(reply)
    assert len({int(item[1:]) % 3 for item in found}) == 3
    assert "i00" not in found
    assert count[found[0]] == count.drop("i00", errors="ignore").max()


def test_rules_are_kept(client, pipeline, inter):
    plain = ids(client.post("/recommend", json={"user": "u7"}))
    blocked = ids(client.post("/recommend", json={"user": "u7", "exclude": plain[:3]}))
    assert not set(blocked) & set(plain[:3])
    allowed = [f"i{i:02}" for i in range(20)]
    assert set(ids(client.post("/recommend", json={"user": "u7", "allowed": allowed}))) <= set(allowed)
    few = ids(client.post("/recommend", json={"user": "u7", "k": 9, "at_most": 2}))
    assert len(few) == 6
    mixed = ids(client.post("/recommend", json={"user": "u7", "diversity": 0.9}))
    wanted = pipeline.recommend_frame(["u7"], 10, exclude=inter, diversity=0.9)
    assert mixed == wanted["item_id"].tolist() != plain
    assert ids(client.post("/recommend", json={"user": "u7", "allowed": ["nothing"]})) == []


def test_a_batch_answers_each_for_itself(client):
    asked = [{"user": "u1", "k": 2}, {"user": "nobody"}, {"history": ["i01"], "k": 3}]
    answers = client.post("/recommend/batch", json={"requests": asked}).json()["answers"]
    assert [one["item"] for one in answers[0]["answer"]["items"]] == ids(
        client.post("/recommend", json=asked[0])
    )
    assert answers[1]["answer"] is None
    assert answers[1]["error"]["code"] == "unknown_user"
    assert len(answers[2]["answer"]["items"]) == 3


def test_more_like_this(client, pipeline):
    reply = client.get("/items/i07/similar", params={"k": 4})
    assert ids(reply) == pipeline.similar_items("i07", 4)["similar_id"].tolist()
    assert client.get("/items/zz/similar").status_code == 404


def test_titles_are_found(client):
    found = client.get("/items", params={"query": "TITLE 4", "k": 100}).json()["items"]
    assert {one["item"] for one in found} == {"i04", *(f"i{i}" for i in range(40, 45))}
    assert len(client.get("/items", params={"query": "☃", "k": 3}).json()["items"]) == 3


def test_ids_that_are_numbers(tmp_path):
    own = lambda i: 100 + i  # noqa: E731
    inter = some_events(own, own)
    make(inter, items=table(own)).save_pretrained(tmp_path / "shop")
    with served(tmp_path / "shop", tmp_path / "e.sqlite") as client:
        found = ids(client.post("/recommend", json={"user": 104}))
        assert all(isinstance(item, int) for item in found)
        assert client.post("/recommend", json={"user": "104"}).status_code == 404
        assert len(ids(client.get("/items/105/similar"))) == 10
        assert client.get(f"/items/{10**30}/similar").status_code == 404
        event = {"events": [{"user": 104, "item": found[0]}]}
        assert client.post("/events", json=event).json() == {"kept": 1, "known_before": 0}
        assert found[0] not in ids(client.post("/recommend", json={"user": 104}))


def test_a_text_where_the_retriever_reads_text(inter, tmp_path):
    texts = [f"a {KINDS[i % 3]} about {'love' if i % 2 else 'trains'}" for i in range(N_ITEMS)]
    towers = TwoTower(item_tower="text", user_tower="history_mean", text=texts, dim=16, epochs=2)
    towers.fit(inter, device="cpu", progress=False)
    Pipeline(towers, items=table()).assemble(inter).save_pretrained(tmp_path / "shop")
    with served(tmp_path / "shop", tmp_path / "e.sqlite") as client:
        assert client.get("/health").json()["reads_text"] is True
        reply = client.post("/recommend", json={"text": "a drama about trains", "k": 5})
        wanted = Pipeline(towers).assemble(inter).recommend_texts(["a drama about trains"], 5)
        assert ids(reply) == wanted["item_id"].tolist()
        assert reply.json()["basis"] == "text"


def test_a_model_that_reads_no_text_says_so(client):
    reply = client.post("/recommend", json={"text": "a slow Japanese drama"})
    assert reply.status_code == 409
    assert reply.json()["fields"] == [{"field": "text", "message": "this model reads no text"}]


def test_a_model_of_users_alone(inter, tmp_path):
    model = Pipeline(BPR(dim=4, epochs=2)).fit(inter, device="cpu", progress=False)
    model.save_pretrained(tmp_path / "shop")
    with served(tmp_path / "shop", tmp_path / "e.sqlite") as client:
        found = ids(client.post("/recommend", json={"user": "u3"}))
        assert found == model.recommend_frame("u3", 10, exclude=inter)["item_id"].tolist()
        client.post("/events", json={"events": [{"user": "u3", "item": found[0]}]})
        assert ids(client.post("/recommend", json={"user": "u3"}))[:9] == found[1:]
        for body in ({"history": ["i01"]}, {"user": "u3", "at_most": 1}):
            assert client.post("/recommend", json=body).status_code == 409


# Events.


def test_a_new_event_is_used_in_the_next_list(client, pipeline, inter):
    before = ids(client.post("/recommend", json={"user": "u9"}))
    reply = client.post(
        "/events", json={"events": [{"user": "u9", "item": before[0], "timestamp": 10**9 + 5000}]}
    )
    assert reply.json() == {"kept": 1, "known_before": 0}
    after = client.post("/recommend", json={"user": "u9"})
    history = inter.item_ids_at(inter.items[inter.users == 9]).tolist()
    assert ids(after) == pipeline.recommend_histories([[*history, before[0]]], 10)["item_id"].tolist()
    assert after.json()["new_events"] == 1
    assert ids(after) != before


def test_a_visitor_whom_the_model_has_never_seen(client, pipeline):
    assert client.post("/recommend", json={"user": "Zoë 🎬"}).status_code == 404
    events = [
        {"user": "Zoë 🎬", "item": item, "timestamp": 10**9 + t} for item, t in (("i05", 9), ("i02", 3))
    ]
    assert client.post("/events", json={"events": events}).json()["kept"] == 2
    reply = client.post("/recommend", json={"user": "Zoë 🎬"})
    assert ids(reply) == pipeline.recommend_histories([["i02", "i05"]], 10)["item_id"].tolist()  # by time


def test_an_event_sent_twice_under_one_name_counts_once(client):
    event = {"user": "twice", "item": "i01", "key": "a"}
    assert client.post("/events", json={"events": [event]}).json() == {"kept": 1, "known_before": 0}
    assert client.post("/events", json={"events": [event]}).json() == {"kept": 0, "known_before": 1}
    assert client.post("/recommend", json={"user": "twice"}).json()["new_events"] == 1


def test_events_are_kept_all_or_none(client):
    events = [{"user": "none", "item": "i01"}, {"user": "none", "item": "unheard of"}]
    reply = client.post("/events", json={"events": events})
    assert reply.status_code == 404
    assert reply.json()["fields"][0]["field"] == "events.1.item"
    assert client.post("/recommend", json={"user": "none"}).status_code == 404


def test_events_that_the_model_was_fitted_on_are_not_read_twice(inter, tmp_path):
    make(inter).save_pretrained(tmp_path / "shop")
    with served(tmp_path / "shop", tmp_path / "e.sqlite") as client:
        own = inter.to_frame().query("user_id == 'u2'")
        events = [
            {"user": "u2", "item": item, "timestamp": int(t)}
            for item, t in zip(own["item_id"], inter.timestamps[inter.users == 2].tolist(), strict=True)
        ]
        assert client.post("/events", json={"events": events}).json()["kept"] == len(events)
        assert client.post("/recommend", json={"user": "u2"}).json()["new_events"] == 0


def test_the_store_keeps_a_log_and_flushes_it(tmp_path):
    store = EventStore(tmp_path / "e.sqlite")
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store.add([Event(7, "a", 2), Event("7", "b", 1), Event(7, "c", 1)]) == 3
    assert [event.item for event in store.of(7, 10)] == ["c", "a"]
    assert [event.item for event in store.of("7", 10)] == ["b"]  # 7 and "7" are two people
    assert [event.item for event in store.of(7, 1)] == ["a"]
    assert len(store) == 3
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "e.sqlite").stat().st_mode) == 0o600
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        EventStore(tmp_path / "nowhere" / "e.sqlite")
    store.close()


def test_what_the_disk_refuses_is_not_acknowledged(folder, tmp_path, monkeypatch):
    with served(folder, tmp_path / "e.sqlite") as client:

        def full(*_):
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(client.app.state.engine.store, "add", full)
        reply = client.post("/events", json={"events": [{"user": "u1", "item": "i01"}]})
        assert reply.status_code == 503
        assert reply.json()["code"] == "not_kept"
        assert reply.headers["retry-after"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def process(folder: Path, events: Path, log: Path, **environment: str) -> Iterator[tuple]:
    """The service as its own process, as ``make serve-api`` starts it."""
    port = free_port()
    command = [sys.executable, "-m", "recsys_lib.serve", str(folder), "--events", str(events)]
    with log.open("w") as output:
        running = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[2],
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert running.poll() is None, log.read_text()
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield running, url
    finally:
        running.kill()
        running.wait()


def test_a_killed_service_loses_no_acknowledged_event(folder, tmp_path):
    log = tmp_path / "log"
    with process(folder, tmp_path / "e.sqlite", log) as (running, url):
        acknowledged: list[str] = []
        killed = threading.Event()

        def send(worker: int) -> None:
            with httpx.Client(base_url=url, timeout=30) as client:
                for i in range(10_000):
                    event = {
                        "user": f"private-{worker}",
                        "item": f"i{i % N_ITEMS:02}",
                        "key": f"{worker}/{i}",
                    }
                    try:
                        reply = client.post("/events", json={"events": [event]})
                    except httpx.TransportError:
                        assert killed.is_set()
                        return
                    assert reply.status_code == 200
                    acknowledged.append(event["key"])

        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(send, worker) for worker in range(4)]
            while len(acknowledged) < 60:
                assert not any(one.done() for one in work)
                time.sleep(0.005)
            killed.set()
            running.send_signal(signal.SIGKILL)
            for one in work:
                one.result()
    store = EventStore(tmp_path / "e.sqlite")
    there = {event.key for worker in range(4) for event in store.of(f"private-{worker}", 10_000)}
    store.close()
    assert len(acknowledged) >= 60
    assert set(acknowledged) <= there
    assert "private" not in log.read_text()


# Another model.


def test_models_are_swapped_without_dropping_a_request(inter, tmp_path):
    make(inter).save_pretrained(tmp_path / "shop")
    other = make(inter[inter.users != 3], reranker=None)
    with served(tmp_path / "shop", tmp_path / "e.sqlite", reload_seconds=0.05, waiting=200) as client:
        first = client.get("/health").json()["model"]
        over = threading.Event()

        def ask(_) -> list[tuple[int, str]]:
            found = []
            with httpx.Client(base_url=client.base_url, timeout=30) as mine:
                while not over.is_set():
                    reply = mine.post("/recommend", json={"user": "u4"})
                    found.append((reply.status_code, reply.json().get("model", "")))
            return found

        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(ask, i) for i in range(4)]
            try:
                other.save_pretrained(tmp_path / "shop")
                deadline = time.monotonic() + 60
                while client.get("/health").json()["model"] == first and time.monotonic() < deadline:
                    time.sleep(0.02)
                wanted = other.recommend_frame(["u4"], 10, exclude=inter)["item_id"].tolist()
                assert ids(client.post("/recommend", json={"user": "u4"})) == wanted
            finally:
                over.set()
        answers = [answer for one in work for answer in one.result()]
        assert {status for status, _ in answers} == {200}
        assert len({model for _, model in answers}) == 2
        # One that cannot be read leaves the former in its place.
        (tmp_path / "shop" / "config.json").write_text("{ half")
        deadline = time.monotonic() + 60
        while not client.get("/health").json()["last_reload_failed"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.get("/health").json()["last_reload_failed"] is True
        assert ids(client.post("/recommend", json={"user": "u4"})) == wanted


# What is refused.

BAD = {
    "no one": ({"k": 3}, 422, "body"),
    "two at once": ({"user": "u1", "history": []}, 422, "history"),
    "a list": ([1], 422, "body"),
    "null": (None, 422, "body"),
    "an unknown user": ({"user": "nobody"}, 404, "user"),
    "an unknown item": ({"history": ["i01", "zz"]}, 404, "history.1"),
    "k of nothing": ({"user": "u1", "k": 0}, 422, "k"),
    "k too large": ({"user": "u1", "k": 101}, 422, "k"),
    "k of a text": ({"user": "u1", "k": "3"}, 422, "k"),
    "k of a truth": ({"user": "u1", "k": True}, 422, "k"),
    "a truth as user": ({"user": True}, 422, "user"),
    "an empty user": ({"user": ""}, 422, "user"),
    "a long user": ({"user": "x" * 201}, 422, "user"),
    "a huge number": ({"user": 10**40}, 422, "user"),
    "a null in a history": ({"history": ["i01", None]}, 422, "history.1"),
    "a history too long": ({"history": ["i01"] * 1001}, 422, "history"),
    "an empty text": ({"text": ""}, 422, "text"),
    "a text too long": ({"text": "x" * 501}, 422, "text"),
    "too diverse": ({"user": "u1", "diversity": 1.5}, 422, "diversity"),
    "a misspelled field": ({"user": "u1", "exlude": []}, 422, "exlude"),
    "a folder": ({"user": "u1", "model": "/etc"}, 422, "model"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_makes_no_sense_names_the_field(client, name):
    body, status, field = BAD[name]
    reply = client.post("/recommend", json=body)
    assert reply.status_code == status, reply.text
    found = reply.json()
    assert set(found) == {"code", "message", "fields"}
    assert [one["field"] for one in found["fields"]] == [field], found
    if status == 422:
        batch = client.post("/recommend/batch", json={"requests": [{"user": "u1"}, body]}).json()
        wanted = "requests.1" + ("" if field == "body" else f".{field}")
        assert [one["field"] for one in batch["fields"]] == [wanted], batch


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": []}, "events"),
        ({"events": [{"user": "u1", "item": "i01"}] * 101}, "events"),
        ({"events": [{"user": "u1"}]}, "events.0.item"),
        ({"events": [{"user": "u1", "item": "i01", "timestamp": -1}]}, "events.0.timestamp"),
        ({"events": [{"user": "u1", "item": "i01", "timestamp": 1.5}]}, "events.0.timestamp"),
        ({"events": [{"user": {}, "item": "i01"}]}, "events.0.user"),
    ],
)
def test_events_that_make_no_sense_name_the_field(client, body, field):
    reply = client.post("/events", json=body)
    assert reply.status_code == 422
    assert [one["field"] for one in reply.json()["fields"]] == [field], reply.text


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b"{", {422}),
        (b"", {422}),
        (b"\xff\xfe", {400, 422}),
        (b'{"user": "\\ud800"}', {422}),
        (b'{"user": "u1", "diversity": NaN}', {422}),
        (b'{"user": ' + b"9" * 5000 + b"}", {400, 422}),
        (b"[" * 50_000, {400, 422}),
        ('{"user": "‮\\u0000☃"}'.encode(), {404}),
    ],
)
def test_a_body_that_is_no_json_or_odd(client, content, statuses):
    reply = client.post("/recommend", content=content, headers={"content-type": "application/json"})
    assert reply.status_code in statuses
    assert set(reply.json()) == {"code", "message", "fields"}


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client):
    large = b'{"user": "' + b"x" * 300_000 + b'"}'
    headers = {"content-type": "application/json"}
    assert client.post("/recommend", content=large, headers=headers).status_code == 413
    pieces = (large[i : i + 1000] for i in range(0, len(large), 1000))  # of no stated length
    assert client.post("/recommend", content=pieces, headers=headers).status_code == 413
    assert client.get("/health").status_code == 200


def test_a_body_that_does_not_come_is_given_up(folder, tmp_path):
    with served(folder, tmp_path / "e.sqlite", seconds=0.3) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=30) as wire:
            wire.sendall(
                b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 20\r\n\r\n{"
            )
            assert b" 408 " in wire.recv(4096).split(b"\r\n")[0]
        assert client.get("/health").status_code == 200


def test_an_answer_that_takes_too_long_and_a_service_that_is_too_busy(folder, tmp_path, monkeypatch):
    with served(folder, tmp_path / "e.sqlite", seconds=0.4, waiting=3, workers=1) as client:
        engine, go = client.app.state.engine, threading.Event()
        real = engine.recommend
        monkeypatch.setattr(engine, "recommend", lambda request: go.wait(30) and real(request))
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: client.post("/recommend", json={"user": "u1"}), range(8)))
        assert {reply.status_code for reply in replies} == {503}
        assert {reply.json()["code"] for reply in replies} == {"too_slow", "too_busy"}
        go.set()
        deadline = time.monotonic() + 30
        while client.post("/recommend", json={"user": "u1"}).status_code != 200:
            assert time.monotonic() < deadline


def test_addresses_and_methods_that_are_not_there(client):
    for reply, status in (
        (client.get("/nowhere"), 404),
        (client.get("/recommend"), 405),
        (client.get("/items", params={"query": ""}), 422),
        (client.get("/items/i01/similar", params={"k": "many"}), 422),
        (client.get("/static/../../pyproject.toml"), 404),
        (client.get("/health", headers={"host": "evil.example"}), 400),
    ):
        assert reply.status_code == status
        assert set(reply.json()) == {"code", "message", "fields"}


def test_a_key_where_one_is_set(folder, tmp_path):
    with served(folder, tmp_path / "e.sqlite", api_key="open sesame") as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"x-api-key": "wrong"}):
            for method, path in (("POST", "/recommend"), ("POST", "/events"), ("GET", "/metrics"),
                                 ("GET", "/items/i01/similar"), ("GET", "/items?query=a")):  # fmt: skip
                reply = client.request(method, path, headers=headers, json={"user": "u1"})
                assert reply.status_code == 401, path
                assert reply.json()["code"] == "no_key"
        right = {"x-api-key": "open sesame"}
        assert client.post("/recommend", json={"user": "u1"}, headers=right).status_code == 200


def test_other_machines_are_let_in_with_a_key_alone(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RECSYS_API_KEY", raising=False)
    assert main([str(folder), "--host", "0.0.0.0"]) == 1
    assert "set RECSYS_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("RECSYS_API_KEY", "schlüssel")
    assert main([str(folder), "--events", str(tmp_path / "e.sqlite")]) == 1
    assert "printable ASCII" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "--events", str(tmp_path / "e.sqlite")]) == 1
    assert "cannot serve" in capsys.readouterr().err


# What is said of it.


def test_the_log_holds_no_personal_history(folder, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    with served(folder, tmp_path / "e.sqlite") as client:
        client.post("/events", json={"events": [{"user": "secret-user", "item": "i07"}]})
        client.post("/recommend", json={"user": "secret-user"})
        client.post("/recommend", json={"history": ["i07", "secret-item"]})
        client.post("/recommend", json={"text": "secret-words"})
        client.post("/recommend", json={"user": ["secret-list"]})
        client.get("/items/i07/similar")
        client.get("/items", params={"query": "secret-query"})

        def broken(request):
            raise KeyError(f"no such thing: {request.user}")

        monkeypatch.setattr(client.app.state.engine, "recommend", broken)
        reply = client.post("/recommend", json={"user": "secret-user"})
        assert reply.status_code == 500
        assert reply.json() == {
            "code": "failed", "message": "the service has failed; its log says where", "fields": []
        }  # fmt: skip
    own = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]  # the client's are its
    said = "\n".join(logging.Formatter().format(record) for record in own)
    assert re.search(r"POST /recommend 200 [\d.]+ ms", said)
    assert "GET /items/{item}/similar 200" in said
    assert "KeyError at test_serve.py" in said
    assert "secret" not in said
    assert "i07" not in said


def test_prometheus_reads_the_numbers(client):
    client.post("/recommend", json={"user": "u1"})
    client.post("/recommend", json={"user": "nobody"})
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text.text)}
    counted = {
        (s.labels["route"], s.labels["status"]): s.value
        for s in families["recsys_requests"].samples
        if s.name == "recsys_requests_total"
    }
    assert counted["/recommend", "200"] >= 1
    assert counted["/recommend", "404"] >= 1
    assert {s.labels["stage"] for s in families["recsys_stage_seconds"].samples} == {
        "retrieve", "rerank", "filter", "diversify"
    }  # fmt: skip
    assert families["recsys_model_info"].samples[0].labels["version"] == client.get("/health").json()["model"]


def test_pages_ask_nobody_else(client):
    for path in ("/", "/docs", "/static/page.js", "/static/page.css", "/static/docs.js"):
        reply = client.get(path)
        assert reply.status_code == 200
        assert not re.search(r"(https?:)?//[\w.-]+\.\w", reply.text.replace("// ", "")), path
        assert "default-src 'self'" in reply.headers["content-security-policy"]
    for page in ("/", "/docs"):
        for name in re.findall(r'(?:src|href)="([^"]+)"', client.get(page).text):
            if not name.startswith("data:"):
                assert client.get("/" + name).status_code == 200, name


@pytest.mark.slow
def test_the_pages_in_a_browser(client, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page, asked, errors = browser.new_page(viewport={"width": 380, "height": 800}), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{client.base_url}/")
    popular = page.locator("#listed li")
    popular.nth(9).wait_for()
    before = popular.all_inner_texts()
    page.fill("#words", "title 1")
    page.locator("#found li").first.wait_for()
    assert all(text.startswith("Title 1") for text in page.locator("#found li").all_inner_texts())
    page.locator("#found button").first.click()
    page.locator("#chosen li").wait_for()
    page.locator("#about", has_text="history;").wait_for()
    assert popular.all_inner_texts() != before
    faults = [
        one["id"] for one in axe.run(page).response["violations"] if one["impact"] in ("serious", "critical")
    ]
    assert not faults
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.locator("summary").click()
    page.fill("#user", "u4")
    page.locator("#about", has_text="user;").wait_for()
    assert not errors
    page.fill("#user", "<b>nobody</b>")
    page.locator("#problem", has_text="not known").wait_for()
    errors.clear()  # a browser notes every 404
    page.goto(f"{client.base_url}/docs")
    page.locator(".opblock").nth(6).wait_for()
    assert page.locator(".opblock").count() == 7
    assert not errors
    assert {httpx.URL(url).netloc for url in asked if not url.startswith("data:")} == {client.base_url.netloc}


def test_the_interface_describes_itself(client):
    found = client.get("/openapi.json").json()
    assert set(found["paths"]) == {
        "/recommend", "/recommend/batch", "/events", "/items/{item}/similar", "/items", "/health", "/metrics"
    }  # fmt: skip
    assert "path" not in json.dumps(found["components"]["schemas"]["ForUser"]["properties"]).lower()


# Load.


def test_two_hundred_requests_at_a_time_of_twenty(client):
    bodies = [{"user": f"u{i % N_USERS}", "k": 5} for i in range(200)]
    alone = {json.dumps(body): ids(client.post("/recommend", json=body)) for body in bodies[:N_USERS]}
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda body: client.post("/recommend", json=body), bodies))
    assert [reply.status_code for reply in replies] == [200] * 200
    assert [ids(reply) for reply in replies] == [alone[json.dumps(body)] for body in bodies]


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "open sesame"])
def test_it_keeps_to_its_own_description(folder, tmp_path, key):
    """Requests made up from the description, right ones and wrong ones, get the answers it promises."""
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", "--max-examples", "40", "--seed", "1"]
    command += ["--generation-database", "none", "--no-color"]
    command += [] if key is None else ["-H", f"X-API-Key: {key}"]
    with served(folder, tmp_path / "e.sqlite", api_key=key) as client:
        run = subprocess.run(
            [*command, f"{client.base_url}/openapi.json"], capture_output=True, text=True, cwd=tmp_path
        )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    tested = re.search(r"Test cases:\s+(\d+) generated", run.stdout)
    assert tested
    assert int(tested[1]) > 200
