"""Descriptions of films: where they come from, whose they are, and what happens when they cannot be had."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from recsys_lib.data import DownloadError, MovieLens, cache_root, descriptions, download, load_descriptions
from recsys_lib.data import movielens as movielens_module
from recsys_lib.data.descriptions import DESCRIPTIONS_LICENSE_NOTE

if TYPE_CHECKING:
    from conftest import FileServer


def record(title: str, year: int, extract: str | None = None, **changes: Any) -> dict[str, Any]:
    """A film as the files of the repository have it."""
    return {
        "title": title,
        "year": year,
        "cast": ["Ann Actor", "Bob Player"],
        "genres": ["Drama"],
        "href": title.replace(" ", "_"),
        "extract": f"{title} is a {year} American drama film about {title.lower()}."
        if extract is None
        else extract,
        **changes,
    }


RECORDS = {
    "movies-1970s.json": [record("The Godfather", 1972), record("Without a Text", 1973, extract="")],
    "movies-1990s.json": [
        record("Se7en", 1995, "Seven (stylized as Se7en) is a 1995 crime film.", href="Seven_(1995_film)"),
        record("Emma", 1996, "Emma is a novel about a young woman by Jane Austen."),
        record("Miracle", 1994, "Miracle is a 1947 American comedy film.", href="Miracle_(1947_film)"),
        record("Two Years", 1996, "Two Years is a 1995 drama film.", href="Two_Years"),
        record("Two Years", 1995, "Two Years is a 1995 drama film.", href="Two_Years"),
        record(
            "<b>Bold</b>", 1998, "<b>Bold</b> is a 1998 film. <script>alert(1)</script>\n\n[x](javascript:y)"
        ),
        record("Styled .mw-parser-output .frac{a:b}.mw-parser-output .num,.x .den{c:d}33 1⁄3", 1994),
        {"title": "No Link", "year": 1997, "genres": [], "cast": []},
    ],
}
TITLES = {  # ids of the data set, which are not the contiguous ones
    7: ("Godfather, The (1972)", "Crime|Drama"),
    8: ("Seven (a.k.a. Se7en) (1995)", "Crime|Thriller"),
    10: ("Emma (1996)", "Romance"),
    20: ("Miracle (1994)", "Drama"),
    30: ("Two Years (1994)", "Drama"),
    40: ("<b>Bold</b> (1998)", "(no genres listed)"),
    50: ("Styled 33 1/3 (1994)", "Comedy"),
    60: ("No Link (1997)", "Drama"),
    70: ("Of a Later Decade (2004)", "Drama"),
    80: ("Without a Year", "Drama"),
    90: ("Without a Text (1973)", "Drama"),
}


@pytest.fixture(autouse=True)
def _no_network_but_the_tests_server(monkeypatch: pytest.MonkeyPatch) -> None:
    download._unreachable.clear()
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.001)
    monkeypatch.setenv("RECSYS_MOVIELENS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RECSYS_DESCRIPTIONS_URL", "http://127.0.0.1:9")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a small repository, which are the ones expected."""
    contents = {name: json.dumps(records).encode() for name, records in RECORDS.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(descriptions, "_FILES", digests)
    return contents


@pytest.fixture
def source(server: FileServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The server with these files."""
    server.files.update({f"/{name}": content for name, content in files.items()})
    monkeypatch.setenv("RECSYS_DESCRIPTIONS_URL", server.url + "/")
    return server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache that holds the archive of a small "latest-small"."""
    movies = "movieId,title,genres\n" + "".join(f'{i},"{t}",{g}\n' for i, (t, g) in TITLES.items())
    ratings = "userId,movieId,rating,timestamp\n" + "".join(f"1,{i},4.0,97830\n" for i in TITLES)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-latest-small/movies.csv", movies)
        archive.writestr("ml-latest-small/ratings.csv", ratings)
    (tmp_path / "movielens").mkdir()
    (tmp_path / "movielens" / "ml-latest-small.zip").write_bytes(buffer.getvalue())
    return tmp_path


@pytest.fixture(autouse=True)
def _any_edition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens_module.warnings, "warn", lambda *_, **__: None)


def load(root: Path) -> pd.DataFrame:
    return load_descriptions("latest-small", root=root, progress=False)


# ---------------------------------------------------------------------- what comes


def test_each_item_has_its_text_or_none(source: FileServer, root: Path) -> None:
    frame = load(root)
    assert frame.index.tolist() == list(range(len(TITLES)))
    assert frame.index.name == "item"
    assert list(frame) == ["text", "article", "url", "year", "source", "cast"]
    by_id = frame.set_index(pd.Index(TITLES))
    assert by_id["text"].notna().to_dict() == {
        **dict.fromkeys(TITLES, False),
        **dict.fromkeys((7, 8, 30, 40, 50), True),
    }
    godfather = by_id.loc[7]
    assert godfather["text"] == "The Godfather is a 1972 American drama film about the godfather."
    assert godfather["url"] == "https://en.wikipedia.org/wiki/The_Godfather"
    assert godfather["year"] == 1972
    assert godfather["cast"] == ("Ann Actor", "Bob Player")
    assert by_id.loc[8, "article"] == "Seven (1995 film)"
    assert by_id.loc[30, "year"] == 1995  # listed under two years; the article says which
    assert by_id.loc[50, "text"].startswith("Styled 33 1⁄3 is a 1994")  # and no style sheet
    nothing = by_id.loc[70]
    assert nothing[["text", "article", "url", "year", "source"]].isna().all()
    assert nothing["cast"] == ()


def test_the_source_and_the_license_are_said_of_every_text(source: FileServer, root: Path) -> None:
    frame = load(root).dropna(subset="text")
    for _, row in frame.iterrows():
        assert row["source"] == f'Wikipedia, "{row["article"]}", CC BY-SA, {row["url"]}'
    assert "CC BY-SA" in DESCRIPTIONS_LICENSE_NOTE
    assert "MIT" in DESCRIPTIONS_LICENSE_NOTE
    assert "91ae721" in DESCRIPTIONS_LICENSE_NOTE
    assert "/91ae721" in descriptions.HOST


def test_texts_are_data_and_links_stay_links(source: FileServer, root: Path) -> None:
    bold = load(root).iloc[5]
    # The text is what the authors wrote, nothing taken for markup, on one line.
    assert bold["text"] == "<b>Bold</b> is a 1998 film. <script>alert(1)</script> [x](javascript:y)"
    assert bold["url"] == "https://en.wikipedia.org/wiki/%3Cb%3EBold%3C/b%3E"
    # pandas escapes what it shows; so must whoever else does.
    assert "<script>" not in load(root)._repr_html_()


@pytest.mark.parametrize(
    "href",
    [
        'Heat_(1995_film)"_onclick="x',
        "Heat)](javascript:alert(1))",
        "L%C3%A9on:_The_Professional",
        "What%27s_Up,_Doc%3F_(1972_film)",
        "Batman_%26_Robin_(film)",
        "Heat <i>\\`",
    ],
)
def test_no_address_leads_out_of_its_link(href: str) -> None:
    frame = pd.DataFrame({"title": ["Heat"], "year": [1995], "genres": [("Drama",)]})
    row = descriptions._describe(frame, [record("Heat", 1995, href=href)]).iloc[0]
    assert not set("()[]<>\"'`\\ ?#&") & set(row["url"])
    parts = urlsplit(row["url"])
    assert (parts.scheme, parts.netloc, parts.query) == ("https", "en.wikipedia.org", "")
    assert unquote(parts.path) == "/wiki/" + unquote(href).replace(" ", "_")


@pytest.mark.parametrize(
    ("extract", "about"),
    [
        ("Heat is a 1995 American crime film.", True),
        ("The Last of the Mohicans is a 1992 American epic historical drama based on the novel.", True),
        ("The Big Picture is 1989 American comedy film.", True),
        ("Stop Making Sense is a 1984 American concert film.", True),
        ("Waiting for Guffman is a 1996 American mockumentary.", True),
        ("Emma is a novel by Jane Austen. A film followed.", False),
        ("The Stand is a 1994 American drama television miniseries.", False),
        ("I'm Not Rappaport is a play by Herb Gardner.", False),
        ("Prehysteria! is a series of three family monster comedy films.", False),
        ("Golden Films is an American production studio.", False),
        ("A tall tale is a story with unbelievable elements.", False),
        ("{{Infobox film | name = The Outsiders", False),
        ("", False),
    ],
)
def test_an_article_about_something_else_is_not_a_films(extract: str, about: bool) -> None:
    assert descriptions._about_a_film(extract) is about


def test_another_data_set_has_the_same_films_under_its_own_ids(
    source: FileServer, tmp_path: Path, movielens: MovieLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptions, "load_movielens", lambda *_, **__: movielens)
    frame = load_descriptions("100k", root=tmp_path, progress=False)
    assert frame.index.equals(movielens.items.index)
    found = movielens.items.loc[frame["text"].notna(), "raw_title"].tolist()
    assert found == ["Seven (Se7en) (1995)", "Godfather, The (1972)"]


def test_an_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown MovieLens data set '10m'"):
        load_descriptions("10m", root=tmp_path)


# ---------------------------------------------------------------------- where it comes from


def test_the_second_load_asks_nobody(source: FileServer, root: Path) -> None:
    first = load(root)
    assert [path for path, _ in source.requests] == ["/movies-1970s.json", "/movies-1990s.json"]
    pd.testing.assert_frame_equal(load(root), first)
    assert len(source.requests) == 2
    assert {path.name for path in (root / "descriptions").iterdir()} - {
        f"{name}.lock" for name in RECORDS
    } == set(RECORDS)


def test_with_no_network_the_error_says_where_to_place_the_files_and_then_it_works(
    files: dict[str, bytes], root: Path
) -> None:
    with pytest.raises(DownloadError) as caught:
        load(root)
    message = str(caught.value)
    assert "http://127.0.0.1:9/movies-1970s.json: no connection" in message
    assert "fetch movies-1970s.json, movies-1990s.json from https://raw.githubusercontent.com/" in message
    assert f"save them in\n  {root / 'descriptions'}\n" in message
    assert "RECSYS_DESCRIPTIONS_URL" in message

    for name, content in files.items():
        (root / "descriptions" / name).write_bytes(content)
    assert load(root)["text"].notna().sum() == 5


def test_a_wrong_file_placed_by_hand_is_named_and_left(files: dict[str, bytes], root: Path) -> None:
    folder = root / "descriptions"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("[]")
    with pytest.raises(DownloadError, match=r"movies-1970s\.json: not the file of that commit"):
        load(root)
    assert (folder / "movies-1970s.json").read_text() == "[]"


@pytest.mark.parametrize("change", [lambda content: content[:-10], lambda content: content[:-1] + b"}"])
def test_a_damaged_file_is_fetched_again(
    source: FileServer, root: Path, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(root)
    place = root / "descriptions" / "movies-1990s.json"
    place.write_bytes(change(place.read_bytes()))
    with caplog.at_level(logging.WARNING):
        pd.testing.assert_frame_equal(load(root), first)
    assert place.read_bytes() == source.files["/movies-1990s.json"]
    assert "movies-1990s.json is replaced" in caplog.text
    assert [path for path, _ in source.requests][2:] == ["/movies-1990s.json"]


def test_a_cut_connection_leaves_no_half_file(source: FileServer, root: Path) -> None:
    def cut(request: Any, content: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:20])
        request.close_connection = True

    source.faults["/movies-1970s.json"] = [cut]
    assert load(root)["text"].notna().sum() == 5  # resumed


def test_other_content_than_that_of_the_commit_is_refused(source: FileServer, root: Path) -> None:
    source.files["/movies-1990s.json"] = b"[]"
    with pytest.raises(DownloadError, match="wrong content"):
        load(root)
    assert not (root / "descriptions" / "movies-1990s.json").exists()


def test_a_cache_that_cannot_be_written(
    files: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(descriptions, "fetch", refuse)
    with pytest.raises(PermissionError) as caught:
        load(root)
    assert "RECSYS_DATA" in caught.value.__notes__[0]


def test_nothing_is_printed_without_progress(
    source: FileServer, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(root)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- the real files, where they are

# Drawn from the matched items of "100k" with numpy's default_rng(100). A person compared title, year, genres
# and text of each: none was wrong. With none in 100, fewer than 3.7 % are, at 95 % confidence.
CHECKED = (
    *(4, 23, 51, 62, 102, 106, 120, 140, 157, 172, 179, 181, 183, 188, 201, 202, 212, 259, 263, 318),
    *(328, 329, 385, 386, 401, 431, 438, 477, 535, 544, 545, 561, 570, 577, 582, 583, 612, 671, 672, 674),
    *(678, 682, 715, 723, 735, 771, 774, 781, 785, 790, 794, 809, 833, 843, 846, 876, 882, 887, 900, 926),
    *(
        931,
        933,
        942,
        962,
        975,
        983,
        992,
        997,
        1023,
        1058,
        1060,
        1064,
        1117,
        1174,
        1181,
        1186,
        1204,
        1208,
        1221,
        1249,
    ),
    *(
        1261,
        1281,
        1284,
        1312,
        1316,
        1417,
        1450,
        1461,
        1470,
        1474,
        1487,
        1489,
        1514,
        1517,
        1527,
        1531,
        1544,
        1551,
        1601,
        1654,
    ),
)
CHECKED_ADDRESSES = (
    "b097c9163953ed231148da696d0bcd7499f2ff9e6b6c9936b7aaf9bf5bae8b9c"  # of the articles judged, one a line
)


def test_the_articles_that_a_person_compared(movielens: MovieLens) -> None:
    folder = cache_root() / "descriptions"
    if not all((folder / name).exists() for name in descriptions._FILES):
        pytest.skip(f"the files of the repository are not in {folder}")
    frame = load_descriptions("100k", progress=False)
    assert frame["text"].notna().sum() >= 1220
    items = movielens.items
    assert ((items["year"] - frame["year"]).abs().dropna() <= 2).all()
    checked = frame.set_index(pd.Index(movielens.interactions.item_ids)).loc[list(CHECKED)]
    addresses = hashlib.sha256("\n".join(checked["url"]).encode()).hexdigest()
    assert addresses == CHECKED_ADDRESSES, "other articles than those that were compared: compare them again"
    # Articles are shared by items that are listed twice, and by no others.
    shared = items.assign(url=frame["url"]).dropna(subset="url")
    assert (shared.groupby("url")[["title", "year"]].agg(lambda column: len(set(column))) == 1).all(axis=None)
    # Not in the files, though a film of that name is.
    foreign = ["Crash (1996)", "Braindead (1992)", "Magnificent Seven, The (1954)", "Machine, The (1994)"]
    assert frame.loc[items["raw_title"].isin(foreign), "text"].isna().all()
    found = ["Sunset Blvd. (1950)", "Professional, The (1994)", "U.S. Marshalls (1998)", "187 (1997)"]
    assert frame.loc[items["raw_title"].isin(found), "text"].notna().all()
