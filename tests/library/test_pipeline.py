import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from small_bert import small_bert

import recsys_lib
from recsys_lib.data import Interactions
from recsys_lib.evaluation import evaluate
from recsys_lib.models import (
    BPR,
    EASE,
    CrossEncoder,
    ItemKNN,
    LinearListwise,
    NotFittedError,
    PairNetwork,
    Popularity,
    TwoTower,
    UserKNN,
)
from recsys_lib.models.core.saving import CONFIG_FILE, WEIGHTS_FILE
from recsys_lib.pipeline import Pipeline, Stages, at_most_of_a_group, maximal_marginal_relevance
from recsys_lib.ranking import rank_topk, seen_in, top_lists
from recsys_lib.retrieval import ExactIndex, FaissIndex

N_USERS, N_ITEMS, KINDS = 60, 90, ("drama", "comedy", "war")


@pytest.fixture(scope="module")
def inter() -> Interactions:
    """Users who mostly choose from one third of the items, in the caller's ids."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        own = np.arange(user % 3, N_ITEMS, 3)
        chosen = np.unique(np.concatenate([rng.choice(own, 12, replace=False), rng.choice(N_ITEMS, 4)]))
        rows += [
            (f"u{user}", f"i{item:02}", 1000 * user + t) for t, item in enumerate(rng.permutation(chosen))
        ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(
        frame, user_ids=[f"u{i}" for i in range(N_USERS + 1)], item_ids=[f"i{i:02}" for i in range(N_ITEMS)]
    )  # the last user has no events


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    """A table of the items, in another order than the catalog's; every ninth is of two kinds."""
    rows = [
        (f"i{i:02}", f"title {i}", [KINDS[i % 3]] + (["classic"] if i % 9 == 0 else []))
        for i in reversed(range(N_ITEMS))
    ]
    return pd.DataFrame(rows, columns=["item_id", "title", "genres"])


@pytest.fixture(scope="module")
def fitted(inter, items) -> Pipeline:
    model = Pipeline(EASE(l2=5.0), reranker=ItemKNN(recency=0.7), items=items, n_candidates=12)
    return model.fit(inter, progress=False)


def words() -> torch.Tensor:
    """(n_items, 4): vectors of texts, by kind."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(N_ITEMS, 4, generator=generator)
    return torch.eye(4)[torch.arange(N_ITEMS) % 3] + noise


class Words:
    """An encoder that knows three words."""

    def encode(self, texts):
        return torch.stack([torch.eye(4)[KINDS.index(text.split()[-1])] for text in texts])


@pytest.fixture(scope="module")
def towers(inter) -> TwoTower:
    model = TwoTower(
        item_tower="text", user_tower="history_mean", text=words(), encoder=Words(), dim=8, epochs=8
    )
    return model.fit(inter, device="cpu", progress=False)


def everyone(model: Pipeline) -> torch.Tensor:
    return torch.arange(model.n_users)


# Two stages.


def test_the_reranker_orders_the_best_unseen_of_the_retriever(fitted, inter):
    """Against the definition, user by user."""
    users = torch.tensor([0, 7, 31])
    found, values = fitted.recommend(users, k=12, exclude=inter)
    for row, user in enumerate(users.tolist()):
        own = inter.items[inter.users == user]
        first = fitted.retriever.score(users[row : row + 1])[0]
        first[own] = -torch.inf
        candidates = first.topk(12).indices
        second = fitted.reranker.score(users[row : row + 1])[0][candidates]
        assert set(found[row].tolist()) == set(candidates.tolist())
        torch.testing.assert_close(values[row], second.sort(descending=True).values)
    alone, _ = fitted.retriever.recommend(users, k=12, exclude=inter)
    assert not torch.equal(found, alone)  # it does change the order


def test_what_was_had_is_a_candidate_where_the_retriever_puts_it_among_them(fitted, inter):
    """And no further down: the last candidate is the n-th that is new."""
    told_apart, popular = False, Popularity().fit(inter, progress=False)
    for n in (2, 5, 12):
        model = Pipeline(popular, reranker=fitted.reranker, n_candidates=n).assemble(inter)
        for user in range(N_USERS):
            stages = Stages()
            model.recommend(torch.tensor([user]), 5, stages=stages)
            order = popular.recommend(torch.tensor([user]), N_ITEMS)[0][0].tolist()
            own = set(inter.items[inter.users == user].tolist())
            new = [place for place, item in enumerate(order) if item not in own]
            assert stages.candidates == new[n - 1] + 1
            told_apart |= order[new[n - 1] + 1] in own
    assert told_apart


def test_what_is_not_a_candidate_follows_in_the_order_of_the_retriever(fitted, inter):
    user = torch.tensor([3])
    found, values = fitted.recommend(user, k=60, exclude=inter)
    rest = found[0, 12:]
    first = fitted.retriever.score(user)[0][rest]
    assert (first.diff() <= 0).all()
    assert values[0, 12] < values[0, 11]
    assert (values[0].diff() <= 0).all()


@pytest.mark.parametrize("n_candidates", [1, 5, 12, 200])
@pytest.mark.parametrize("k", [1, 10, 40, N_ITEMS])
@pytest.mark.parametrize("again", [False, True])
def test_what_is_recommended_is_what_is_evaluated(fitted, inter, n_candidates, k, again):
    """Lists made by stages are the top of ``score``, with what was had and without it."""
    model = Pipeline(fitted.retriever, reranker=fitted.reranker, n_candidates=n_candidates).assemble(inter)
    users = everyone(model)
    exclude = None if again else inter
    found, values = model.recommend(users, k, exclude, progress=False)
    expected, scores = top_lists(model, users, k, None if again else seen_in(inter), progress=False)
    assert torch.equal(found, expected)
    torch.testing.assert_close(values, scores)


def test_a_report_is_that_of_the_lists(fitted, inter):
    test = inter[torch.arange(0, len(inter), 5)]
    report = evaluate(fitted, test, k=10, progress=False)
    found, _ = fitted.recommend(report.users, 10, progress=False)
    hits = [len(set(row.tolist()) & set(test.items[test.users == user].tolist())) for row, user in
            zip(found, report.users.tolist(), strict=True)]  # fmt: skip
    wanted = [len(set(test.items[test.users == user].tolist())) for user in report.users.tolist()]
    recall = np.mean([h / w for h, w in zip(hits, wanted, strict=True)])
    assert report.metrics["recall@10"] == pytest.approx(recall, rel=1e-5)


def test_a_history_is_served_as_its_user_is(fitted, inter):
    users = torch.tensor([4, 0, 59])
    torch.testing.assert_close(
        fitted.score_histories(
            inter.histories(users), [inter.timestamps[inter.users == u] for u in users.tolist()]
        ),
        fitted.score(users),
    )
    names = [inter.item_ids_at(history).tolist() for history in inter.histories(users)]
    by_history = fitted.recommend_histories(dict(zip(["a", "b", "c"], names, strict=True)), 5)
    by_user = fitted.recommend_frame(["u4", "u0", "u59"], 5, exclude=inter)
    assert by_history["item_id"].tolist() == by_user["item_id"].tolist()
    assert by_history["user_id"].tolist() == ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    assert by_history["score"].tolist() == pytest.approx(by_user["score"].tolist(), rel=1e-5)
    with pytest.raises(KeyError, match="unknown item id 'nothing'"):
        fitted.recommend_histories([["nothing"]])


def test_new_events_count_without_a_fit(inter):
    model = Pipeline(EASE(l2=5.0), reranker=ItemKNN(), n_candidates=12).fit(
        inter[inter.users != 5], progress=False
    )
    before, others = model.score(torch.tensor([5])), model.score(torch.tensor([1, 2]))
    model.update_histories(inter)
    after = model.score(torch.tensor([5]))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model.score_histories(inter.histories([5])))
    torch.testing.assert_close(model.score(torch.tensor([1, 2])), others)


def test_parts_that_know_users_by_number_serve_users_alone(inter):
    model = Pipeline(BPR(dim=4, epochs=2), reranker=ItemKNN()).fit(inter, device="cpu", progress=False)
    assert not model.reads_histories
    assert model.recommend(torch.tensor([0]), 3, inter)[0].shape == (1, 3)
    for ask in (lambda: model.recommend_histories([["i01"]]), lambda: model.score_histories([[1]]),
                lambda: model.update_histories(inter)):  # fmt: skip
        with pytest.raises(ValueError, match="the retriever of this Pipeline, BPR, knows users by number"):
            ask()
    other = Pipeline(EASE(), reranker=UserKNN()).fit(inter, progress=False)
    with pytest.raises(ValueError, match="the reranker of this Pipeline, UserKNN"):
        other.recommend_histories([["i01"]])


class Backwards:
    """A reranker that has nothing but a method: the higher the number of an item, the better."""

    def __init__(self) -> None:
        self.asked = []

    def rank(self, users, candidates):
        self.asked.append(candidates)
        ranked, _ = candidates.sort(dim=1, descending=True)
        return ranked, ranked.float().masked_fill(ranked < 0, -torch.inf)


class Halves:
    """A reranker that has scores and no more."""

    n_items = N_ITEMS

    def score(self, users):
        return (torch.arange(N_ITEMS) >= 45).float().repeat(len(users), 1)


def test_anything_that_ranks_or_scores_can_rerank(fitted, inter, tmp_path):
    backwards = Backwards()
    model = Pipeline(fitted.retriever, reranker=backwards, n_candidates=7).assemble(inter)
    found, _ = model.recommend(torch.tensor([1, 2]), 7, inter)
    assert (found.diff(dim=1) < 0).all()
    assert [len(row[row >= 0]) for row in backwards.asked[0]] == [7, 7]  # no more than it must
    halves = Pipeline(fitted.retriever, reranker=Halves(), n_candidates=20).assemble(inter)
    found, values = halves.recommend(torch.tensor([1]), 20, inter)
    assert values[0].tolist() == sorted((found[0] >= 45).float().tolist(), reverse=True)
    with pytest.raises(TypeError, match="the reranker, Backwards, is no Recommender and cannot be saved"):
        model.save_pretrained(tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_parts_that_make_no_sense_are_refused(inter):
    with pytest.raises(TypeError, match="needs a recommender as its retriever, got NoneType"):
        Pipeline().fit(inter)
    with pytest.raises(TypeError, match="needs rank\\(\\) or score\\(\\), and int has neither"):
        Pipeline(EASE(), reranker=3).fit(inter)
    with pytest.raises(ValueError, match="EASE has none; leave index out"):
        Pipeline(EASE(), ExactIndex()).fit(inter)
    with pytest.raises(NotFittedError, match="this EASE is not fitted"):
        Pipeline(EASE()).assemble(inter)
    other = dataclasses.replace(inter, item_ids=pd.RangeIndex(N_ITEMS))
    with pytest.raises(ValueError, match=r"assemble \(EASE\).*item 0 is 'i00' in the first and 0"):
        Pipeline(EASE().fit(inter, progress=False)).assemble(other)
    with pytest.raises(ValueError, match="n_candidates must be 1 or more"):
        Pipeline(EASE(), n_candidates=0)


# Vectors, an index, a text.


@pytest.mark.parametrize("make", [ExactIndex, lambda: FaissIndex("flat")])
def test_an_index_gives_the_lists_of_the_scores(towers, inter, make):
    if make is not ExactIndex:
        pytest.importorskip("faiss")
    plain = Pipeline(towers, reranker=ItemKNN().fit(inter, progress=False), n_candidates=9).assemble(inter)
    quick = Pipeline(towers, make(), plain.reranker, n_candidates=9).assemble(inter)
    users = torch.tensor([N_USERS, 3, 0])  # the first has no events, and no vector
    for exclude in (None, inter):
        for k in (5, 30):
            wanted, scores = plain.recommend(users, k, exclude)
            found, values = quick.recommend(users, k, exclude)
            assert torch.equal(found, wanted)
            torch.testing.assert_close(values, scores)
    histories = [["i01", "i04"], [], ["i02"]]
    options = {"allowed": [f"i{i:02}" for i in range(50)], "blocked": ["i07"]}
    ours, theirs = (model.recommend_histories(histories, 10, **options) for model in (quick, plain))
    assert ours["item_id"].tolist() == theirs["item_id"].tolist()


LARGE = 600  # items: product quantization learns 256 codes


@pytest.fixture(scope="module")
def large() -> Interactions:
    """Users who choose from one of six kinds of items; one has no events."""
    rng = np.random.default_rng(1)
    rows = [
        (user, int(item), time)
        for user in range(60)
        for time, item in enumerate(rng.permutation(np.arange(user % 6, LARGE, 6))[:20])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(61), item_ids=range(LARGE))


@pytest.fixture(scope="module")
def large_parts(large) -> tuple[TwoTower, ItemKNN]:
    towers = TwoTower(user_tower="history_mean", dim=16, epochs=4, seed=1)
    towers.fit(large, device="cpu", progress=False)
    return towers, ItemKNN().fit(large, progress=False)


APPROXIMATE = {
    "hnsw": {"m": 8, "ef_search": 8},
    "ivf": {"n_lists": 30, "n_probe": 2},
    "pq": {"n_lists": 8, "n_probe": 2, "code_bytes": 8},
}


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_approximate_index_finds_most_and_fills_every_list(large, large_parts, kind, tmp_path):
    pytest.importorskip("faiss")
    towers, knn = large_parts
    exact = Pipeline(towers, ExactIndex(), knn, n_candidates=30).assemble(large)
    quick = Pipeline(towers, FaissIndex(kind, **APPROXIMATE[kind]), knn, n_candidates=30).assemble(large)
    users = torch.tensor([60, *range(30)])  # the first has no events, and no vector
    wanted, _ = exact.recommend(users, 20, large)
    found, values = quick.recommend(users, 20, large)
    assert torch.equal(found[0], wanted[0])
    common = [len(set(a) & set(b)) / 20 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]
    assert np.mean(common) > {"hnsw": 0.9, "ivf": 0.5, "pq": 0.4}[kind]
    for row, user in zip(found.tolist(), users.tolist(), strict=True):
        assert len(set(row)) == 20
        assert not set(row) & set(large.items[large.users == user].tolist())
    # The second model's scores are its own, whatever the index knows of the vectors.
    chosen, place = users[:, None].expand_as(found), torch.arange(20) < 10
    torch.testing.assert_close(
        values[:, place].flatten(), knn.predict(chosen[:, place].flatten(), found[:, place].flatten())
    )
    # As long as the catalog: the index goes as deep as it must.
    everything, _ = quick.recommend(users[:4], LARGE)
    assert everything.sort(dim=1)[0].tolist() == [list(range(LARGE))] * 4

    history = {"a visitor": [3, 9, 15], "nobody": []}
    before = quick.recommend_histories(history, 10), quick.recommend_frame([3], 10, exclude=large)
    quick.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert repr(loaded.index) == repr(quick.index)
    pd.testing.assert_frame_equal(loaded.recommend_histories(history, 10), before[0])
    pd.testing.assert_frame_equal(loaded.recommend_frame([3], 10, exclude=large), before[1])


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_filters_that_leave_little_are_met_exactly(large, large_parts, kind):
    """Of three items that may be listed an approximate search would find none, or some."""
    pytest.importorskip("faiss")
    towers, knn = large_parts
    exact = Pipeline(towers, ExactIndex(), knn, n_candidates=30).assemble(large)
    quick = Pipeline(towers, FaissIndex(kind, **APPROXIMATE[kind]), knn, n_candidates=30).assemble(large)
    users = torch.arange(12)
    for allowed in ([5, 100, 598], range(0, LARGE, 40), range(299)):
        for again in (None, large):
            found, values = quick.recommend(users, 20, again, allowed=allowed)
            wanted, scores = exact.recommend(users, 20, again, allowed=allowed)
            assert torch.equal(found, wanted)
            torch.testing.assert_close(values, scores)
    # Less than half refused: the index is asked, and every list is filled with what may be listed.
    found, _ = quick.recommend(users, 20, large, blocked=range(0, LARGE, 3))
    assert (found >= 0).all()
    assert (found % 3 != 0).all()


def test_an_index_must_compare_as_the_retriever_does(inter):
    model = TwoTower(normalize=False, dim=4, epochs=1)
    with pytest.raises(ValueError, match="compares by the dot product and the index by the cosine"):
        Pipeline(model, ExactIndex("cosine")).fit(inter)


@pytest.mark.parametrize("index", [None, ExactIndex()])
def test_a_text_finds_what_is_like_it(towers, inter, items, index):
    model = Pipeline(towers, index, items=items).assemble(inter)
    found = model.recommend_texts(["a slow war", "a comedy"], 6, items=items)
    assert found["text"].tolist() == ["a slow war"] * 6 + ["a comedy"] * 6
    vectors = towers.encode_items(["a slow war", "a comedy"]) @ towers.encode_items().mT
    assert found["item_id"].tolist() == [f"i{i:02}" for i in vectors.topk(6).indices.flatten().tolist()]
    blocked = found["item_id"].tolist()[:6]
    assert not set(model.recommend_texts(["a slow war"], 6, blocked=blocked)["item_id"]) & set(blocked)


# A re-ranker that reads texts.


@pytest.fixture(scope="module")
def reader(inter) -> CrossEncoder:
    """Reads a title with its kind; on a small encoder, which learns little."""
    texts = [f"title{i} {KINDS[i % 3]}" for i in range(N_ITEMS)]
    model = CrossEncoder(
        text=texts,
        text_model=small_bert((*(f"title{i}" for i in range(N_ITEMS)), *KINDS, "slow", ";")),
        max_history=4,
        encoder_learning_rate=0.003,
        n_negatives=2,
    )
    return model.fit(inter, device="cpu", progress=False)


def test_a_cross_encoder_orders_what_a_history_retrieves(inter, reader):
    model = Pipeline(EASE(l2=5.0).fit(inter, progress=False), reranker=reader, n_candidates=8).assemble(inter)
    users = torch.tensor([4, 0, 59])
    found, values = model.recommend(users, 8, inter)
    first, _ = model.retriever.recommend(users, 8, inter)
    assert [set(row) for row in found.tolist()] == [set(row) for row in first.tolist()]
    for row, user in enumerate(users.tolist()):
        expected = reader.predict(torch.full((8,), user), found[row])
        torch.testing.assert_close(values[row], expected, rtol=1e-4, atol=1e-6)
    # Users whose history is handed over get the same; times are tied nowhere.
    names = [inter.item_ids_at(history).tolist() for history in inter.histories(users)]
    by_history = model.recommend_histories(names, 8)
    assert by_history["item_id"].tolist() == inter.item_ids_at(found.flatten()).tolist()
    assert by_history["score"].tolist() == pytest.approx(values.flatten().tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("index", [None, ExactIndex()])
def test_a_cross_encoder_orders_what_a_text_finds(towers, inter, reader, index, tmp_path):
    model = Pipeline(towers, index, reader, n_candidates=6).assemble(inter)
    stages = Stages()
    texts = ["a slow war", "a comedy"]
    found = model.recommend_texts(texts, 9, stages=stages)
    assert stages.candidates == 12
    nearest = (towers.encode_items(texts) @ towers.encode_items().mT).topk(9).indices
    for row, text in enumerate(texts):
        mine = found[found["text"] == text]
        items = model.item_ids.get_indexer(mine["item_id"])
        order, scores = reader.rank(text, [reader.text[item] for item in nearest[row, :6].tolist()])
        assert items.tolist() == [*nearest[row, order].tolist(), *nearest[row, 6:].tolist()]
        assert mine["score"].tolist()[:6] == pytest.approx(scores.tolist(), rel=1e-4, abs=1e-6)
        alone = model.recommend_texts([text], 9)
        assert alone["item_id"].tolist() == mine["item_id"].tolist()
    model.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    loaded.retriever.encoder = Words()
    pd.testing.assert_frame_equal(loaded.recommend_texts(texts, 9), found)


def test_a_cross_encoder_reads_the_catalog_where_nothing_finds_candidates(inter, reader, tmp_path):
    for retriever in (
        EASE(l2=5.0).fit(inter, progress=False),
        BPR(dim=4, epochs=1).fit(inter, progress=False),
    ):
        model = Pipeline(retriever, reranker=reader, n_candidates=5).assemble(inter)
        assert model.reads_texts
        found = model.recommend_texts(["a slow war"], 7, blocked=["i03"])
        scores = reader.predict([("a slow war", text) for text in reader.text])
        scores[3] = -torch.inf
        assert found["item_id"].tolist() == [f"i{i:02}" for i in top(scores, 7)]
    model.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path).recommend_texts(["a slow war"], 7, blocked=["i03"])
    pd.testing.assert_frame_equal(again, found)


def test_a_cross_encoder_that_has_learned_from_judged_pairs_reranks(inter, reader):
    pairs = [(f"slow {kind}", text) for kind in KINDS for text in reader.text[:9]]
    labels = [float(query.split()[-1] in document) for query, document in pairs]
    judge = CrossEncoder(text=reader.text, text_model=reader.text_model, encoder_learning_rate=0.003)
    judge.fit_pairs(pairs, labels, inter, device="cpu", progress=False)
    model = Pipeline(EASE(l2=5.0).fit(inter, progress=False), reranker=judge).assemble(inter)
    found = model.recommend_texts(["slow war"], 4)
    scores = judge.predict([("slow war", text) for text in reader.text])
    assert found["item_id"].tolist() == [f"i{i:02}" for i in top(scores, 4)]
    assert len(model.recommend_histories([["i01", "i04"]], 4)) == 4
    # Without users and items it is of no pipeline.
    judge.fit_pairs(pairs, labels, device="cpu", progress=False)
    with pytest.raises(ValueError, match=r"assemble \(CrossEncoder\)"):
        Pipeline(model.retriever, reranker=judge).assemble(inter)


def top(scores: torch.Tensor, k: int) -> list[int]:
    return rank_topk(scores[None], k, users=torch.zeros(1, dtype=torch.int64))[0][0].tolist()


def test_a_pipeline_knows_whether_it_reads_texts(towers, fitted, reader, inter):
    assert Pipeline(towers).reads_texts
    assert not Pipeline(TwoTower(dim=4)).reads_texts
    assert not fitted.reads_texts
    vectors = TwoTower(item_tower="text", text=words(), dim=4, epochs=1)
    vectors.fit(inter, device="cpu", progress=False)
    assert not Pipeline(vectors).reads_texts  # nothing makes a vector of a new text
    with pytest.raises(ValueError, match="cannot read a new text: set its attribute encoder"):
        Pipeline(vectors).assemble(inter).recommend_texts(["a war"])
    found = Pipeline(vectors, reranker=reader).assemble(inter).recommend_texts(["a war"], 3)
    assert len(found) == 3


@pytest.mark.parametrize("make", [LinearListwise, PairNetwork])
def test_a_reranker_that_reads_the_time_is_told_it(inter, make):
    """The newest event's second says what was popular then."""
    reranker = make(l2=5.0, epochs=3, n_candidates=20, window_days=0.05)
    model = Pipeline(EASE(l2=5.0), reranker=reranker, n_candidates=12).fit(
        inter, device="cpu", progress=False
    )
    users = torch.tensor([4, 0, 59])
    times = [inter.timestamps[inter.users == user].tolist() for user in users.tolist()]
    told = model.score_histories(inter.histories(users), times)
    torch.testing.assert_close(told, model.score(users), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.score_histories(inter.histories(users)), told, atol=1e-3)


def test_a_retriever_that_reads_no_text_says_so(fitted, inter):
    with pytest.raises(ValueError, match="the retriever of this Pipeline, EASE, reads no text"):
        fitted.recommend_texts(["a slow Japanese drama"])
    tower = TwoTower(dim=4, epochs=1).fit(inter, device="cpu", progress=False)
    with pytest.raises(ValueError, match='item_tower="id" reads no text'):
        Pipeline(tower).assemble(inter).recommend_texts(["a slow Japanese drama"])
    with pytest.raises(TypeError, match=r"write \[text\]"):
        fitted.recommend_texts("a slow Japanese drama")


# Filters and diversity.


def test_filters_cost_no_candidate(fitted, inter):
    """What may not be listed is left out before the candidates are taken."""
    user = torch.tensor([6])
    best = inter.item_ids_at(fitted.recommend(user, 12, inter)[0][0]).tolist()
    blocked, scores = fitted.recommend(user, 12, inter, blocked=[*best, "unheard of"])
    assert not set(inter.item_ids_at(blocked[0])) & set(best)
    torch.testing.assert_close(scores[0], fitted.reranker.predict(user.expand(12), blocked[0]))
    allowed = [f"i{i:02}" for i in range(0, N_ITEMS, 2)]
    found, _ = fitted.recommend(user, 12, inter, allowed=allowed, blocked=allowed[:20])
    assert set(inter.item_ids_at(found[0])) <= set(allowed[20:])
    own = set(inter.item_ids_at(inter.items[inter.users == 6]))
    assert not set(inter.item_ids_at(found[0])) & own
    few, values = fitted.recommend(user, 5, allowed=["i01", "i02"])
    assert (few[0] >= 0).tolist() == [True, True, False, False, False]
    assert values[0, 2:].tolist() == [-torch.inf] * 3


def test_at_most_so_many_of_a_group_from_the_top_down():
    groups = [frozenset("a"), frozenset("ab"), frozenset("b"), frozenset(), frozenset("a"), frozenset("b")]
    assert at_most_of_a_group([0, 1, 2, 3, 4, 5], groups, 1) == [0, 2, 3]
    assert at_most_of_a_group([1, 0, 2, 3, 4, 5], groups, 1) == [0, 3]
    assert at_most_of_a_group([0, 1, 2, 3, 4, 5], groups, 2) == [0, 1, 2, 3]
    assert at_most_of_a_group([], groups, 1) == []


@pytest.mark.parametrize("at_most", [1, 2, 4])
def test_lists_hold_at_most_so_many_of_a_group(fitted, inter, items, at_most):
    kinds = items.set_index("item_id")["genres"]
    found = fitted.recommend_frame("u8", 6, exclude=inter, at_most=at_most)
    count = found["item_id"].map(kinds).explode().value_counts()
    assert (count <= at_most).all()
    # The best of what is left: the greedy choice along the whole order.
    order = fitted.recommend(torch.tensor([8]), N_ITEMS, inter)[0][0]
    order = order[order >= 0].tolist()
    groups = [frozenset(kinds[f"i{i:02}"]) for i in range(N_ITEMS)]
    kept = [f"i{order[place]:02}" for place in at_most_of_a_group(order, groups, at_most)][:6]
    assert found["item_id"].tolist() == kept
    assert len(found) == min(6, 3 * at_most)


def test_a_list_goes_on_below_what_was_made_diverse(fitted, inter, items):
    """Twenty are made diverse; where a group is full among them, the list is filled in the old order."""
    user = torch.tensor([8])
    diverse = fitted.recommend(user, 20, inter, diversity=0.6)[0][0].tolist()
    order = fitted.recommend(user, N_ITEMS, inter)[0][0]
    order = diverse + [item for item in order[order >= 0].tolist() if item not in diverse]
    kinds = items.set_index("item_id")["genres"]
    groups = [frozenset(kinds[f"i{i:02}"]) for i in range(N_ITEMS)]
    for at_most in (1, 3, 7):
        found = fitted.recommend(user, 20, inter, diversity=0.6, at_most=at_most)[0][0]
        wanted = [order[place] for place in at_most_of_a_group(order, groups, at_most)][:20]
        assert found[found >= 0].tolist() == wanted


def test_the_options_are_the_rules_of_every_list(fitted, inter, items):
    model = Pipeline(fitted.retriever, items=items, at_most=1, diversity=0.5).assemble(inter)
    assert len(model.recommend_frame("u8", 6, exclude=inter)) == 3
    assert len(model.recommend_histories([["i03"]], 6)) == 3
    assert len(model.recommend_frame("u8", 6, exclude=inter, at_most=6, diversity=0.0)) == 6


def by_hand(relevance, similarity, k, diversity):
    """The definition, word by word."""
    left, picked = list(range(len(relevance))), []
    while len(picked) < k:

        def gain(i):
            nearest = max((similarity[i][j] for j in picked), default=0.0)
            return (1 - diversity) * relevance[i] - diversity * nearest

        best = max(left, key=lambda i: (gain(i) if picked else relevance[i], -i))
        left.remove(best)
        picked.append(best)
    return picked


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_maximal_marginal_relevance_is_its_definition(diversity):
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 9):
        relevance = torch.rand(n, generator=generator)
        vectors = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
        similarity = vectors @ vectors.mT
        for k in {1, n}:
            found = maximal_marginal_relevance(relevance, similarity, k, diversity)
            assert found.tolist() == by_hand(relevance.tolist(), similarity.tolist(), k, diversity)


def test_maximal_marginal_relevance_on_three_items():
    """Two that are nearly the same and a worse one: the worse comes second as soon as it is worth it."""
    relevance = torch.tensor([1.0, 0.9, 0.5])
    similarity = torch.tensor([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert maximal_marginal_relevance(relevance, similarity, 3, 0.0).tolist() == [0, 1, 2]
    assert maximal_marginal_relevance(relevance, similarity, 3, 0.2).tolist() == [0, 1, 2]  # .53 > .40
    assert maximal_marginal_relevance(relevance, similarity, 3, 0.5).tolist() == [0, 2, 1]  # -.025 < .25
    with pytest.raises(ValueError, match=r"similarity must be \(C, C\) for the C = 3"):
        maximal_marginal_relevance(relevance, similarity[:2], 2, 0.5)
    with pytest.raises(ValueError, match="at most the 3 items there are, got 4"):
        maximal_marginal_relevance(relevance, similarity, 4, 0.5)
    with pytest.raises(ValueError, match="diversity must be a number from 0 to 1, got 2"):
        maximal_marginal_relevance(relevance, similarity, 2, 2)


@pytest.mark.parametrize("kind", ["vectors", "groups"])
def test_a_diverse_list_is_less_alike(fitted, towers, inter, items, kind):
    model = Pipeline(towers, items=items).assemble(inter) if kind == "vectors" else fitted
    kinds = items.set_index("item_id")["genres"].str[0]

    def variety(diversity):
        found = model.recommend_frame(
            [f"u{i}" for i in range(20)], 6, exclude=inter, diversity=diversity, progress=False
        )
        return found["item_id"].map(kinds).groupby(found["user_id"]).nunique().mean(), found

    (plain, first), (mixed, second) = variety(0.0), variety(0.8)
    assert mixed > plain + 0.2
    tops = [frame[frame["rank"] == 1]["item_id"].tolist() for frame in (first, second)]
    assert tops[0] == tops[1]  # the best stays the best
    assert variety(0.0)[1]["item_id"].tolist() == first["item_id"].tolist()


def test_rules_without_what_they_need_are_refused(inter, items):
    model = Pipeline(EASE()).fit(inter, progress=False)
    for rule in ({"at_most": 2}, {"diversity": 0.5}):
        with pytest.raises(ValueError, match="give Pipeline items=, a frame with the column 'genres'"):
            model.recommend(torch.tensor([0]), 3, **rule)
    with pytest.raises(ValueError, match="at_most needs the items' groups"):
        Pipeline(EASE(), at_most=2).fit(inter, progress=False)
    with pytest.raises(ValueError, match=r"diversity must be a number from 0 to 1, got 1\.5"):
        model.recommend(torch.tensor([0]), 3, diversity=1.5)
    with pytest.raises(ValueError, match="at_most must be at least 1, got 0"):
        model.recommend(torch.tensor([0]), 3, at_most=0)
    with pytest.raises(ValueError, match="no row of an item that the pipeline knows"):
        Pipeline(EASE(), items=items.assign(item_id=range(N_ITEMS))).fit(inter, progress=False)


def test_groups_are_lists_or_texts(inter, items):
    texts = items.assign(genres=items["genres"].str.join("|"))
    texts.loc[0, "genres"] = None
    model = Pipeline(EASE(l2=5.0), items=texts).fit(inter, progress=False)
    assert model._groups[0] == {"drama", "classic"}
    assert model._groups[N_ITEMS - 1] == frozenset()


# Where the time goes.


def test_the_stages_report_their_time(fitted, inter):
    stages = Stages()
    fitted.recommend(torch.tensor([0, 1]), 5, inter, stages=stages)
    assert (stages.lists, stages.candidates) == (2, 24)
    assert stages.retrieve > 0
    assert stages.rerank > 0
    assert stages.diversify == 0
    fitted.recommend_histories([["i01"]], 5, diversity=0.5, stages=stages)
    assert (stages.lists, stages.candidates) == (3, 36)
    assert stages.diversify > 0
    assert stages.total == pytest.approx(sum(stages.seconds().values()))
    assert list(stages.seconds()) == ["retrieve", "rerank", "filter", "diversify"]
    assert str(stages).startswith("3 lists in ")


# One folder.


def test_a_folder_holds_all_of_it(towers, inter, items, tmp_path):
    model = Pipeline(
        towers, ExactIndex(), ItemKNN().fit(inter, progress=False), items=items, n_candidates=9, at_most=4
    ).assemble(inter)
    model.save_pretrained(tmp_path / "shop")
    assert {path.name for path in tmp_path.iterdir()} == {"shop"}
    assert {path.name for path in (tmp_path / "shop").iterdir() if path.is_dir()} == {"retriever", "reranker"}
    loaded = recsys_lib.load(tmp_path / "shop")
    assert type(loaded) is Pipeline
    assert type(loaded.retriever) is TwoTower
    assert type(loaded.reranker) is ItemKNN
    assert loaded.config == model.config
    assert isinstance(loaded.index, ExactIndex)
    assert loaded.catalog["title"].tolist() == [f"title {i}" for i in range(N_ITEMS)]
    for kw in ({}, {"at_most": 2}, {"diversity": 0.4}):
        ours, theirs = (one.recommend_frame(["u3", "u9"], 8, exclude=inter, **kw) for one in (model, loaded))
        pd.testing.assert_frame_equal(ours, theirs)
    assert type(recsys_lib.load(tmp_path / "shop" / "reranker")) is ItemKNN


def test_saving_over_an_older_pipeline_leaves_nothing_of_it(towers, fitted, inter, tmp_path):
    Pipeline(towers, ExactIndex(), ItemKNN().fit(inter, progress=False)).assemble(inter).save_pretrained(
        tmp_path
    )
    (tmp_path / "notes.txt").write_text("mine")
    Pipeline(fitted.retriever).assemble(inter).save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert (loaded.index, loaded.reranker) == (None, None)
    assert type(loaded.retriever) is EASE
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_fails_on_the_way_leaves_the_older_one(fitted, inter, tmp_path, monkeypatch):
    fitted.save_pretrained(tmp_path / "shop")
    before = fitted.score(torch.tensor([0, 1]))

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    other = Pipeline(Popularity(), reranker=ItemKNN()).fit(inter, progress=False)
    monkeypatch.setattr(ItemKNN, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path / "shop")
    assert {path.name for path in tmp_path.iterdir()} == {"shop"}
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "shop").score(torch.tensor([0, 1])), before)


def test_what_breaks_while_an_older_one_is_replaced_is_no_pipeline(fitted, inter, tmp_path, monkeypatch):
    fitted.save_pretrained(tmp_path / "shop")
    remove = shutil.rmtree

    def torn(path, *args, **kwargs):
        if path == tmp_path / "shop" / "reranker":
            raise OSError("the plug was pulled")
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", torn)
    with pytest.raises(OSError, match="plug"):
        Pipeline(fitted.retriever).assemble(inter).save_pretrained(tmp_path / "shop")
    with pytest.raises(FileNotFoundError, match="saving was interrupted"):
        recsys_lib.load(tmp_path / "shop")
    monkeypatch.undo()
    fitted.save_pretrained(tmp_path / "shop")
    assert type(recsys_lib.load(tmp_path / "shop").reranker) is ItemKNN


def test_a_folder_that_is_not_whole_is_refused(fitted, inter, tmp_path):
    fitted.save_pretrained(tmp_path / "shop")
    shutil.copytree(tmp_path / "shop", tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn" / "retriever")
    with pytest.raises(FileNotFoundError, match="no folder retriever"):
        recsys_lib.load(tmp_path / "torn")
    shutil.copytree(tmp_path / "shop" / "retriever", tmp_path / "torn" / "retriever")
    (tmp_path / "torn" / "reranker" / WEIGHTS_FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged"):
        recsys_lib.load(tmp_path / "torn")
    config = json.loads((tmp_path / "shop" / "reranker" / CONFIG_FILE).read_text())
    config["model_class"] = "SomeoneElses"
    (tmp_path / "shop" / "reranker" / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds a SomeoneElses, which is no model of this library"):
        recsys_lib.load(tmp_path / "shop")


def test_a_part_of_another_pipeline_is_refused(fitted, inter, tmp_path):
    fitted.save_pretrained(tmp_path / "shop")
    few = Interactions.from_frame(pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1]}))
    shutil.rmtree(tmp_path / "shop" / "reranker")
    ItemKNN().fit(few, progress=False).save_pretrained(tmp_path / "shop" / "reranker")
    with pytest.raises(ValueError, match="holds a model of another pipeline"):
        recsys_lib.load(tmp_path / "shop")
