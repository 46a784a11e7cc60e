"""Recommendations in the caller's own ids: frames, catalogs, stock, histories, files."""

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import BPR, EASE, MarkovChain, Popularity, UserKNN
from recsys_lib.models.core import frames

PURCHASES = pd.DataFrame(
    [
        ("C01", "007"), ("C01", "010"), ("C02", "007"), ("C02", "010"), ("C02", "011"),
        ("C03", "011"), ("C03", "012"), ("C04", "012"), ("C04", "011"), ("C04", "010"),
    ],
    columns=["user_id", "item_id"],
)  # fmt: skip
CATALOG = pd.DataFrame(
    {
        "item_id": ["012", "007", "010", "011", "099"],
        "title": ["tea", "bread", "salt", "milk", "new"],
        "score": [1, 2, 3, 4, 5],
    }
)


@pytest.fixture(scope="module")
def inter() -> Interactions:
    return Interactions.from_frame(PURCHASES, item_ids=sorted(CATALOG["item_id"]))


@pytest.fixture(scope="module")
def model(inter) -> EASE:
    return EASE(l2=1.0).fit(inter)


def test_titles_come_from_the_catalog_in_any_order(model, inter):
    frame = model.recommend_frame("C01", k=2, items=CATALOG, exclude=inter)
    assert list(frame.columns) == ["user_id", "rank", "item_id", "score", "title"]  # the model's own score
    title = CATALOG.set_index("item_id")["title"]
    assert frame["title"].tolist() == [title[i] for i in frame["item_id"]]
    assert frame["item_id"][0] == "011"
    by_index = model.recommend_frame(["C01"], k=2, items=CATALOG.set_index("item_id"), exclude=inter)
    pd.testing.assert_frame_equal(frame, by_index)
    # Items that the catalog does not describe have no title.
    part = model.recommend_frame(["C01"], k=5, items=CATALOG[CATALOG["item_id"] == "011"])
    assert part["title"].notna().sum() == 1
    assert len(part) == 5


def test_only_what_is_allowed_is_recommended(model, inter):
    stock = ["099", "010", "unheard of"]
    frame = model.recommend_frame(["C01", "C03"], k=4, exclude=inter, allowed=stock)
    assert frame[frame["user_id"] == "C01"]["item_id"].tolist() == ["099"]  # 010 was bought before
    assert set(frame[frame["user_id"] == "C03"]["item_id"]) == {"010", "099"}
    for same in (pd.Series(stock), pd.Index(stock), set(stock), tuple(stock)):
        pd.testing.assert_frame_equal(
            model.recommend_frame(["C01", "C03"], k=4, exclude=inter, allowed=same), frame
        )
    items, _ = model.recommend(torch.tensor([0, 2]), 4, inter, allowed=stock)
    assert items[0].tolist()[1:] == [-1, -1, -1]
    with pytest.raises(ValueError, match="none of the 1 allowed ids is an item that the model knows"):
        model.recommend_frame("C01", k=2, allowed=["x"])
    with pytest.raises(TypeError, match="got a mask; take the ids where it is True"):
        model.recommend_frame("C01", k=2, allowed=CATALOG["score"] > 3)
    with pytest.raises(TypeError, match="got a DataFrame; take one of its columns"):
        model.recommend_frame("C01", k=2, allowed=CATALOG)


def test_a_person_never_seen(model, inter):
    frame = model.recommend_histories({"visitor": ["007"], "silent": []}, k=2, items=CATALOG)
    assert frame["user_id"].tolist() == ["visitor"] * 2 + ["silent"] * 2
    assert "007" not in frame[frame["user_id"] == "visitor"]["item_id"].tolist()
    expected = model.score_histories([inter.item_index(["007"])])[0]
    expected[inter.item_index("007")] = -torch.inf
    assert frame["item_id"][0] == inter.item_ids[int(expected.argmax())]
    again = model.recommend_histories([["007", "010"]], k=5, repeat=True)
    assert set(again["item_id"]) == set(CATALOG["item_id"])
    assert set(again["user_id"]) == {0}
    only = model.recommend_histories([["007"]], k=3, allowed=["012", "007"])
    assert only["item_id"].tolist() == ["012"]
    with pytest.raises(KeyError, match=r"unknown item id 'x'.*knows 5 items, such as '007'"):
        model.recommend_histories({"visitor": ["007", "x"]})
    with pytest.raises(TypeError, match="histories must map a name to a list of item ids"):
        model.recommend_histories("007")
    # Models that read the last item alone do so here as well.
    assert MarkovChain().fit(inter).recommend_histories([["007"]], k=1).shape == (1, 4)


def test_similar_items(model, inter):
    frame = model.similar_items("007", k=4, items=CATALOG)
    assert frame["item_id"].tolist() == ["007"] * 4
    assert frame["similar_id"].tolist()[0] == "010"
    assert "007" not in frame["similar_id"].tolist()
    title = CATALOG.set_index("item_id")["title"]
    assert frame["title"].tolist() == [title[i] for i in frame["similar_id"]]
    weights = model.item_weights[0]
    assert frame["score"].tolist() == pytest.approx(weights[1:].sort(descending=True)[0].tolist())
    factors = BPR(dim=4, epochs=5).fit(inter)
    cosine = torch.nn.functional.cosine_similarity(factors.item_factors[1][None], factors.item_factors)
    found = factors.similar_items(["010"], k=1)
    assert found["score"][0] == pytest.approx(cosine[[0, 2, 3, 4]].max().item(), rel=1e-5)
    for without in (Popularity(), UserKNN()):
        with pytest.raises(TypeError, match="has no similar items"):
            without.fit(inter).similar_items("007")


def test_unknown_people_are_named_with_what_to_do(model):
    with pytest.raises(KeyError, match=r"unknown user id 'C1': this EASE knows 4 users, such as 'C01'; for"):
        model.recommend_frame(["C01", "C1"])
    with pytest.raises(KeyError, match=r"'a', 'b', 'c' and 1 more"):
        model.recommend_frame(list("abcd"))
    with pytest.raises(TypeError, match="users must be ids, got a DataFrame"):
        model.recommend_frame(PURCHASES)


def test_catalogs_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="items holds '007' more than once"):
        model.recommend_frame("C01", k=2, items=pd.concat([CATALOG, CATALOG[1:2]]))
    numbers = CATALOG.assign(item_id=CATALOG["item_id"].astype(int))
    with pytest.raises(ValueError, match="it knows such as '007', items has 12"):
        model.recommend_frame("C01", k=2, items=numbers)
    with pytest.raises(TypeError, match="items must be a DataFrame"):
        model.recommend_frame("C01", k=2, items=["007"])


def test_everybody_to_parquet_in_batches(model, inter, tmp_path, monkeypatch):
    whole = model.recommend_to_parquet(tmp_path / "all.parquet", k=2, exclude=inter)
    expected = model.recommend_frame(inter.user_ids, k=2, exclude=inter)
    pd.testing.assert_frame_equal(pd.read_parquet(whole), expected)
    monkeypatch.setattr(frames, "_USERS_AT_ONCE", 1)
    model.recommend_to_parquet(tmp_path / "parts.parquet", k=2, exclude=inter)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "parts.parquet"), expected)
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups == 4
    model.recommend_to_parquet(tmp_path / "some.parquet", k=1, users=["C04"])
    assert pd.read_parquet(tmp_path / "some.parquet")["user_id"].tolist() == ["C04"]


def test_a_file_is_whole_or_not_there(model, inter, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_USERS_AT_ONCE", 1)
    calls = iter(range(9))
    plain = EASE.recommend

    def dies(self, *arguments, **options):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, *arguments, **options)

    monkeypatch.setattr(EASE, "recommend", dies)
    with pytest.raises(KeyboardInterrupt):
        model.recommend_to_parquet(tmp_path / "all.parquet", k=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write all\.parquet into"):
        model.recommend_to_parquet(tmp_path / "nowhere" / "all.parquet")
    with pytest.raises(ValueError, match="no users to write lists for"):
        model.recommend_to_parquet(tmp_path / "none.parquet", users=[])


def test_lists_for_many_users_are_made_in_batches(inter):
    """Memory does not grow with users x items: the model is asked for a bounded number at a time."""
    many = Interactions.from_frame(
        pd.DataFrame({"user_id": range(5000), "item_id": [i % 3000 for i in range(5000)]})
    )
    model, asked = Popularity().fit(many), []
    plain = model._score
    model._score = lambda users: asked.append(len(users)) or plain(users)
    items, _ = model.recommend(torch.arange(5000), k=3, exclude=many, progress=False)
    assert items.shape == (5000, 3)
    assert len(asked) > 1
    assert max(asked) * 3000 <= 2**23
