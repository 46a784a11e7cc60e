"""The map of vectors: what it puts on the page and into its picture, and what it refuses."""

import base64
import json
import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from test_layers import loaded_by

from recsys_lib.chapter import PALETTE
from recsys_lib.chapter.map import VectorMap
from recsys_lib.similarity import top_neighbors

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script><img src=x onerror=alert(1)><!--&\"'@DATA@@NAME@"


def shown(n=4, **changes):
    rng = np.random.default_rng(0)
    options = {
        "points": rng.normal(size=(n, 2)),
        "labels": [f"Item {i}" for i in range(n)],
        "caption": "Items by taste.",
        "alternative": "Some items.",
    } | changes
    return VectorMap(options.pop("points"), options.pop("labels"), **options)


def data_of(page):
    """The data as the page's script reads them."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def numbers(data, key, kind):
    return np.frombuffer(base64.b64decode(data[key]), dtype=kind)


def picture_of(page):
    return base64.b64decode(re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)[1]).decode()


def texts_of(picture, kind="wide"):
    groups = ElementTree.fromstring(picture).iter(f"{SVG}g")
    return [text for group in groups if group.get("class") == kind for text in group.iter(f"{SVG}text")]


def catalog(n=1682, k=5):
    """As many items as MovieLens 100K has, with titles as long."""
    rng = np.random.default_rng(0)
    words = ["Return", "Toy", "Independence", "Day", "Monkeys", "of", "the", "Star"]
    return shown(
        n,
        labels=[" ".join(rng.choice(words, rng.integers(2, 5))) + f" ({1930 + i % 70})" for i in range(n)],
        groups=[f"group {i}" for i in rng.integers(6, size=n)],
        sizes=600 / np.arange(1, n + 1) ** 0.7,
        neighbors=(np.arange(n)[:, None] + rng.integers(1, n, size=(n, k))) % n,
    )


def test_the_page_holds_what_its_script_reads():
    near = torch.tensor([[1, 2], [0, -1], [3, 0], [2, 1]])
    page = shown(groups=["b", "a", "b", "b"], neighbors=near).to_html()
    data = data_of(page)
    assert data["labels"] == ["Item 0", "Item 1", "Item 2", "Item 3"]
    assert data["kinds"] == ["b", "a"]  # the largest first
    assert numbers(data, "group", "u1").tolist() == [0, 1, 0, 0]
    assert (numbers(data, "near", "<i2").reshape(4, data["k"]) == near.numpy()).all()
    assert data["colors"] == list(PALETTE[:2])
    assert len(set(data["shapes"])) == 2


def test_the_script_gets_large_items_first():
    near = np.array([[1, 2], [0, -1], [3, 0], [2, 1]])
    made = shown(sizes=[1, 3, 2, 9], groups=["a", "b", "a", "a"], neighbors=near)
    data = data_of(made.to_html())
    assert data["labels"] == ["Item 3", "Item 1", "Item 2", "Item 0"]
    assert numbers(data, "group", "u1").tolist() == [0, 1, 0, 0]
    assert numbers(data, "near", "<i2").reshape(4, 2).tolist() == [[2, 1], [3, -1], [0, 3], [1, 2]]
    assert (numbers(data, "xy", "<u2").reshape(4, 2) == made.xy[[3, 1, 2, 0]]).all()
    assert numbers(data, "radius", "u1").tolist() == sorted(made.radius, reverse=True)
    named = {item: text for kind, item, *_, text in data["named"] if kind == "wide"}
    assert named == dict(enumerate(data["labels"]))


def test_points_keep_their_distances_and_stand_upright():
    plane = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    made = shown(points=plane)
    xy = numbers(data_of(made.to_html()), "xy", "<u2").reshape(4, 2).astype(float)
    near = np.linalg.norm(plane[:, None] - plane, axis=-1)
    drawn = np.linalg.norm(xy[:, None] - xy, axis=-1)
    scale = drawn[0, 1] / near[0, 1]
    assert drawn == pytest.approx(scale * near, abs=1.5)  # whole units
    assert scale * 4 > 900  # the width is used
    assert xy[2, 1] < xy[0, 1]  # what is larger stands higher
    assert xy.min() >= 0
    assert (xy <= [1000, made.height]).all()


@pytest.mark.parametrize(
    "plane", [np.zeros((3, 2)), [[0, 0], [1, 0], [2, 0]], [[0, 0], [0, 1], [0, 1e6]], [[1e9, 1e9]] * 3]
)
def test_points_without_an_extent_stay_on_the_map(plane):
    made = shown(3, points=plane)
    assert (made.xy > 0).all()
    assert (made.xy < [1000, made.height]).all()
    assert 400 < made.height < 900


def test_the_area_of_a_marker_grows_with_its_size():
    radius = shown(3, sizes=[0, 50, 100]).radius.astype(float)
    assert radius[1] ** 2 == pytest.approx((radius[0] ** 2 + radius[2] ** 2) / 2, rel=0.05)
    assert len(set(shown(3, sizes=[0, 0, 0]).radius)) == 1


def test_every_item_is_in_the_picture_in_the_color_of_its_group():
    made = catalog()
    paths = ElementTree.fromstring(made.to_svg()).findall(f"{SVG}path")[1:7]
    assert [path.get("fill") for path in paths] == list(PALETTE)
    assert [path.get("d").count("M") for path in paths] == [
        made.group.tolist().count(kind) for kind in range(6)
    ]
    assert len(set(data_of(made.to_html())["shapes"])) == 6


def test_the_order_of_the_legend_can_be_chosen():
    made = shown(groups=["b", "a", "b", "b"], order=["a", "b"])
    assert made.kinds == ["a", "b"]
    assert made.group.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(("kind", "size", "most"), [("wide", 18, 12), ("narrow", 32, 6)])
def test_the_names_in_the_picture_do_not_overlap(kind, size, most):
    texts = texts_of(catalog().to_svg(), kind)
    assert len(texts) == most
    boxes = []
    for text in texts:
        left, right = span(text, size)
        boxes.append((left, float(text.get("y")) - 0.7 * size, right, float(text.get("y"))))
    for a, b in combinations(boxes, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    assert all(box[0] >= 0 and box[2] <= 1000 for box in boxes)


def test_names_do_not_overlap_in_a_crowd():
    """Where all items but two stand on a small spot, their names would otherwise lie on each other."""
    crowd = 5 + 0.3 * np.random.default_rng(0).normal(size=(60, 2))
    made = shown(62, points=[[0, 0], [10, 10], *crowd], labels=["Some film or other (1995)"] * 62)
    texts = texts_of(made.to_svg())
    assert len(texts) > 3
    for a, b in combinations([(float(text.get("y")), text) for text in texts], 2):
        assert abs(a[0] - b[0]) >= 18 or span(a[1])[1] < span(b[1])[0] or span(b[1])[1] < span(a[1])[0]


def span(text, size=18):
    """Where a name begins and ends, from left to right."""
    x, width = float(text.get("x")), 0.6 * size * len(text.text)
    left = x - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
    return left, left + width


def test_large_items_are_named_first():
    made = shown(400, sizes=np.arange(400))
    assert made.named[0].item == made.rank[0] == 399
    assert np.mean([label.item for label in made.named]) > 300


def test_a_long_name_is_cut_only_where_there_is_no_shorter_one():
    long = "A " + "very " * 30 + "long title"
    plane = [[0, 0], [1, 1], [2, 0]]
    (only,) = texts_of(shown(1, points=[[0, 0]], labels=[long]).to_svg())
    assert only.text.endswith("…")
    assert len(only.text) <= 34
    names = [text.text for text in texts_of(shown(3, points=plane, labels=[long, "B", "C"]).to_svg())]
    assert names[:2] == ["B", "C"]


def test_no_text_breaks_out_of_its_place():
    page = shown(
        labels=[NASTY, "B", "C", "D"],
        groups=[NASTY, "b", "b", "b"],
        caption=NASTY,
        alternative=NASTY,
        search=NASTY,
    ).to_html()
    assert NASTY not in page
    assert "<!--" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert page.count("<img") == 1
    data = data_of(page)
    assert data["labels"][0] == data["kinds"][1] == data["search"] == NASTY
    picture = picture_of(page)
    assert "<img" not in picture
    assert NASTY[:20] in "".join(ElementTree.fromstring(picture).itertext())


def test_a_control_character_does_not_break_the_picture():
    picture = shown(1, points=[[0, 0]], labels=["a\x00\x1bb\ud800"]).to_svg()
    assert texts_of(picture)[0].text == "a\ufffd\ufffdb\ufffd"


def test_it_is_light_enough_for_a_page():
    assert len(catalog().to_html().encode()) < 150_000


def test_nothing_is_asked_of_another_host():
    page = shown().to_html()
    assert re.findall(r"""(?:src|href)="(.{5})|url\(|@import""", page) == ["data:"]
    assert set(re.findall(r"https?://[^\"' >]+", page)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, no address


def test_several_maps_stand_on_one_page():
    ids = [re.findall(r'\bid="([^"]+)"', shown(name=name).to_html()) for name in ("films", "b-2")]
    assert ids == [["fig-films"], ["fig-b-2"]]


def test_the_neighbors_of_vectors_can_be_handed_over():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    near, _ = top_neighbors(x, 3)
    made = shown(5, neighbors=near)
    assert repr(made) == "VectorMap: 5 items"
    assert made._repr_html_() == made.to_html()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((3, 2))}, "points have the shape (3, 2); for 4 labels it must be (4, 2)"),
        ({"points": np.zeros((4, 3))}, "points have the shape (4, 3)"),
        ({"points": [[0, 0], [1, 1], [np.nan, 0], [0, np.inf]]}, "the point of item 2 is not finite"),
        ({"labels": []}, "1 to 5,000 items, got 0"),
        ({"points": np.zeros((5001, 2)), "labels": ["x"] * 5001}, "got 5,001"),
        ({"groups": ["a", "b"]}, "4 labels and 2 groups"),
        ({"groups": list("abcd"), "order": list("abc")}, "must name each of the groups"),
        ({"groups": list("abab"), "order": list("aab")}, "must name each of the groups"),
        ({"order": ["a"]}, "there are no groups"),
        ({"points": np.zeros((7, 2)), "labels": ["x"] * 7, "groups": list("abcdefg")}, "there are 7 groups"),
        ({"sizes": [1, 2, 3]}, "sizes have the shape (3,)"),
        ({"sizes": [1, -2, 3, 4]}, "the size of item 1 is -2.0"),
        ({"sizes": [1, 2, np.nan, 4]}, "the size of item 2 is nan"),
        ({"neighbors": [[1], [0], [0]]}, "neighbors have the shape (3, 1)"),
        ({"neighbors": [1, 0, 0, 0]}, "neighbors have the shape (4,)"),
        ({"neighbors": [[1.0], [0.0], [0.0], [0.0]]}, "the type float64"),
        ({"neighbors": [[1], [0], [4], [0]]}, "a neighbor of item 2 is none of the items 0 to 3"),
        ({"neighbors": [[1], [-2], [0], [0]]}, "a neighbor of item 1 is none of the items"),
        ({"neighbors": [[1], [0], [2], [0]]}, "item 2 is among its own neighbors"),
        ({"caption": " "}, "caption is empty"),
        ({"alternative": ""}, "alternative is empty"),
        ({"name": 'a" b'}, "part of an id"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        shown(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b", float("nan"), "d"]}, "the label of item 2 is nan"),
        ({"groups": ["a", None, "b", "b"]}, "the group of item 1 is None"),
    ],
)
def test_what_is_no_text_is_refused(changes, message):
    with pytest.raises(TypeError, match=message):
        shown(**changes)


def test_it_is_imported_without_torch():
    assert "torch" not in loaded_by("from recsys_lib.chapter.map import VectorMap")
