"""What an encyclopedia says of the films of MovieLens: the beginning of each film's article in Wikipedia.

The extracts come from the repository `prust/wikipedia-movie-data <https://github.com/prust/wikipedia-movie-data>`_,
which lists American films (with some from elsewhere that were shown there) by decade. No package index has
them, so a book that is built without a network does without.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd

from recsys_lib.data.download import DownloadError, cache_root, fetch
from recsys_lib.data.film_matching import Film, alternative_titles, match_films
from recsys_lib.data.movielens import load_movielens

__all__ = ["DESCRIPTIONS_LICENSE_NOTE", "load_descriptions"]

HOST = "https://raw.githubusercontent.com/prust/wikipedia-movie-data/91ae721"
DESCRIPTIONS_LICENSE_NOTE = (
    "Extracts of articles of the English Wikipedia, by its authors, under CC BY-SA "
    "(https://creativecommons.org/licenses/by-sa/4.0/); each item's article is linked beside its text. "
    "Collected in the files of https://github.com/prust/wikipedia-movie-data (commit 91ae721), which are "
    "under the MIT license. The data are fetched by whoever runs this; they are no part of it and are not "
    "passed on."
)
_FILES = {  # name -> SHA-256, of that commit
    "movies-1920s.json": "cb892518d2ffda4f2f11a0bd56f28b102fd0d47e5ae1ba2b2e4cb4e964f8127a",
    "movies-1930s.json": "b2ffc5608cbeff231408433ad43f873d422b914bebdf408ebe18427c09a9dcb2",
    "movies-1940s.json": "b4d96fc8b7c36f406e489b6fc017de03dd6a10f4c89a84d2a2a46af74e8b49a3",
    "movies-1950s.json": "8f566bfec734e93f19f688598e82239556401bde63c226510d71190b30855298",
    "movies-1960s.json": "a2450179f0744c07960a7840b9a86b5e0d733f7c0136a4ebcb804a63de9dc0a1",
    "movies-1970s.json": "f9abef01840fc70afd148906c7985fa5548ab1f473520dfa6623a3a397bc4ce3",
    "movies-1980s.json": "21d0f3c203f77169bb6508225aad4740816a3d7efd9e3bac82e3b812d0569672",
    "movies-1990s.json": "facf24e3297937022285d064cc069e8bbe02581c3248a87f0b377c045b4fb61d",
}


def load_descriptions(
    name: str = "100k", *, root: str | os.PathLike[str] | None = None, progress: bool = True
) -> pd.DataFrame:
    """What Wikipedia says of each item of a MovieLens data set, fetched the first time.

    The eight files (17 MB) are fetched from the repository, or from the mirror that
    ``$RECSYS_DESCRIPTIONS_URL`` names, checked against their digests and kept below ``<root>/descriptions``;
    files placed there by hand are used as they are. A damaged one is fetched again.

    An item's article is found by title, year and genres (:func:`recsys_lib.data.film_matching.match_films`).
    In doubt there is none. The files end with the 1990s and hold few films made outside America, so a good
    quarter of "100k", and every later film of "latest-small", has no text.

    The texts are data, as the encyclopedia's authors wrote them: plain text, never markup. Whoever shows one
    escapes it, names its source and links the article.

    Args:
        name: Name of the data set, as in :func:`recsys_lib.data.load_movielens`.
        root: The cache's folder; see :func:`recsys_lib.data.cache_root` for the default.
        progress: Show progress bars for what takes long.

    Returns:
        A frame with a row for each item, indexed by contiguous item id like ``load_movielens(name).items``.
        Columns, missing where there is no article: ``text`` (one line of plain text), ``article`` (its
        title), ``url`` (its address, percent-encoded throughout), ``year`` (Int64, as the files give it),
        ``source`` (the line that credits it, with the license and the address); and ``cast`` (a tuple of
        names, empty where unknown).

    Raises:
        ValueError: The name is unknown.
        DownloadError: A file could not be had. The message says what was tried, and where to place the files
            by hand.
    """
    items = load_movielens(name, root=root, progress=progress).items
    folder = (Path(root).expanduser() if root is not None else cache_root()) / "descriptions"
    return _describe(items, _records(folder, progress))


def _describe(items: pd.DataFrame, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of descriptions, for items with ``title``, ``year`` and ``genres``."""
    articles: dict[str, tuple[Mapping[str, Any], Film, str]] = {}
    for record in records:
        text, address = _clean(record.get("extract") or ""), record.get("href")
        if not address or not _about_a_film(text):
            continue
        film = _film(record, text)
        # A film that is listed under two years is taken where its article agrees with the list.
        if len(film.years) == 1 or address not in articles:
            articles[address] = (record, film, text)
    listed = list(articles.values())
    wanted = [
        Film(title, () if pd.isna(year) else (int(year),), tuple(genres), alternative_titles(title))
        for title, year, genres in zip(items["title"], items["year"], items["genres"], strict=True)
    ]
    found = match_films(wanted, [film for _, film, _ in listed])
    rows = [_row(*listed[position]) if position is not None else _NOTHING for position in found]
    frame = pd.DataFrame(rows, columns=list(_NOTHING), index=items.index)
    texts = dict.fromkeys(("text", "article", "url", "source"), "string")
    return frame.astype({**texts, "year": "Int64", "cast": "object"})


_NOTHING: dict[str, Any] = dict.fromkeys(("text", "article", "url", "year", "source")) | {"cast": ()}


def _row(record: Mapping[str, Any], film: Film, text: str) -> dict[str, Any]:
    article = unquote(record["href"]).replace("_", " ")
    # Brackets and quotes are encoded as well: whatever stands in the data, a link stays a link.
    url = "https://en.wikipedia.org/wiki/" + quote(article.replace(" ", "_"), safe="/:,!*~")
    return {
        "text": text,
        "article": article,
        "url": url,
        "year": film.years[0],
        "source": f'Wikipedia, "{article}", CC BY-SA, {url}',
        "cast": tuple(record.get("cast") or ()),
    }


# ---------------------------------------------------------------------- the files


def _records(folder: Path, progress: bool) -> Iterator[Mapping[str, Any]]:
    """The records of all files."""
    host = (os.environ.get("RECSYS_DESCRIPTIONS_URL") or HOST).rstrip("/")
    for file, sha256 in _FILES.items():
        path = folder / file
        try:
            fetch(
                f"{host}/{file}",
                path,
                sha256=sha256,
                read_timeout=10.0,
                tries=2,
                max_bytes=64 << 20,
                progress=progress,
            )
        except DownloadError as error:
            wrong = f"\n  - {path}: not the file of that commit" if path.exists() else ""
            raise DownloadError(
                f"The descriptions of films could not be had. Tried:\n  - {error}{wrong}\n"
                f"To place them by hand, fetch {', '.join(_FILES)} from {HOST}/ wherever it can be "
                f"reached, save them in\n  {folder}\n"
                "and call again. A mirror can be named in the environment variable RECSYS_DESCRIPTIONS_URL."
            ) from error
        except PermissionError as error:
            error.add_note("The environment variable RECSYS_DATA can name another folder for the cache.")
            raise
        yield from json.loads(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------- what an article says of its film

_IS = r"\b(?:is|are|was|were)\s+(?:an?\b|the\b|one\b|two\b|(?=\d{4}))"
_STYLE_SHEET = re.compile(r"\s*[^{}\s]*\.mw-parser-output[^{}]*\{[^{}]*\}")
_PREDICATE = re.compile(rf"{_IS}(?P<what>.{{0,400}})")
_ANY_FILM = re.compile(
    r"\b(?:\w*film\w*|movies?|motion pictures?|\w*documentary|featurette|cartoon"
    # "a 1992 American epic historical drama directed by", but not "a drama series"
    r"|(?:comedy|\w*drama|thriller|western|mystery|horror|adventure|fantasy|romance|musical|noir|crime"
    r"|adaptation|\w*mentary|animated short|direct-to-video)"
    r"(?!\s+(?:\w+ )?(?:novel|book|play|album|(?:television )?(?:mini)?series|television special|story)))\b",
    re.IGNORECASE,
)
_ANYTHING_ELSE = re.compile(
    r"\b(?:novels?|novella|book|plays?|short story|poem|album|song|series|serial|miniseries|special|company"
    r"|studio|editorial|franchise|concert(?! film| movie)|character|memoir|autobiography|biography)\b",
    re.IGNORECASE,
)
_HEAD = re.compile(rf"^(?P<names>.{{1,200}}?)[\s,)]+{_IS}")
_BETWEEN_NAMES = re.compile(
    r"[(),;]|\b(?:(?:also|sometimes|originally|alternatively|alternately|simply|better|retroactively|formerly|"
    r"commonly|and|or|more)\s+)*(?:known|titled|released|called|marketed|stylized)\b(?: [^,;()]*?\bas\b)?"
    r"|\bor\b"
)
_ARTICLE_YEAR = re.compile(r"\b(?:is|was)\s+an?\s(?:[^.]{0,40}?)\b((?:18|19|20)\d\d)\b")
_KIND = re.compile(
    r"\b(comedy|drama|thriller|western|mystery|horror|adventure|fantasy|romance|romantic|musical|noir|crime|action|war|"
    r"science fiction|animated|documentary|family)\b",
    re.IGNORECASE,
)
_KINDS = re.compile(
    r"^.*?\b(?:is|was) an? (?P<what>.*?)(?:\b(?:film|movie|directed|written|starring|produced)\b|\.)"
)


def _clean(text: str) -> str:
    """One line, without the style sheets that stand in some titles and extracts."""
    if ".mw-parser-output" in text:
        text = _STYLE_SHEET.sub(" ", text)
    return " ".join(text.split())


def _about_a_film(text: str) -> bool:
    """Whether an article is about a film; some links lead to the novel instead, or to a whole series."""
    match = _PREDICATE.search(text)
    if match is None:
        return False
    film, other = _ANY_FILM.search(match["what"]), _ANYTHING_ELSE.search(match["what"])
    return film is not None and (other is None or film.start() < other.start())


def _film(record: Mapping[str, Any], text: str) -> Film:
    """The film of a record, with the names, the year and the genres that its article gives besides."""
    title = _clean(record["title"])
    names = [re.sub(r" \([^()]*\)$", "", unquote(record["href"]).replace("_", " "))]
    if match := _HEAD.match(text):
        names += [name.strip(" \"'\u201c\u201d") for name in _BETWEEN_NAMES.split(match["names"])]
    years = [int(record["year"])]
    if (match := _ARTICLE_YEAR.search(text)) and int(match[1]) != years[0]:
        years.append(int(match[1]))
    kinds = _KIND.findall(match["what"]) if (match := _KINDS.search(text)) else []
    return Film(
        title,
        tuple(years),
        (*record["genres"], *(kind.casefold() for kind in kinds)),
        tuple(name for name in dict.fromkeys(names) if name and name != title),
    )
