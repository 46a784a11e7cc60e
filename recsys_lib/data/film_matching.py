"""Which film of one catalog is which of another, by title, year and genres.

Two catalogs rarely spell a title alike: one puts "The" behind it, the other writes "II" for "2", or leaves
the author's name out. Here a title becomes a few keys, from the strictest to the loosest; whole titles come
before parts of one, then the years decide, then the genres. What is left in doubt stays unmatched: for a
recommender, a film that is described as another one is worse than a film without a description.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

__all__ = ["YEARS_APART", "Film", "alternative_titles", "match_films", "title_keys"]

YEARS_APART = 2  # catalogs differ by a year or two: premiere, release, release elsewhere


@dataclass(frozen=True)
class Film:
    """A film as a catalog describes it.

    Attributes:
        title: Its title, article in front.
        years: Of its release: one, or several where sources differ. A film without any matches nothing.
        genres: Names of genres, of either catalog's vocabulary.
        names: Further names: alternative titles.
    """

    title: str
    years: tuple[int, ...]
    genres: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @cached_property
    def keys(self) -> dict[str, int]:
        """Every key of every name, with the level of its looseness, 0 the strictest."""
        keys: dict[str, int] = {}
        for name in (self.title, *self.names):
            for key, level in title_keys(name).items():
                keys[key] = min(level, keys.get(key, level))
        return keys

    @cached_property
    def strict(self) -> frozenset[str]:
        """The keys that leave nothing out."""
        return frozenset(key for key, level in self.keys.items() if level == 0)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The genres in one vocabulary."""
        names = (name.casefold() for name in self.genres)
        return frozenset(kind for name in names for kind in _GENRES.get(name, (name,)))


def match_films(items: Sequence[Film], films: Sequence[Film]) -> list[int | None]:
    """For each item, the film that it is.

    - The titles share a key (:func:`title_keys`). A whole title is preferred to a part of one.
    - The years are at most :data:`YEARS_APART` apart, and the nearest wins, so that a remake is told from
      the original.
    - Of films in the same year, the one that shares more genres wins. If that does not decide either, none is
      taken.
    - The further apart titles and years are, the more the genres have to agree. A documentary is never
      matched to a feature film.
    - A film goes to one item, the one that it is nearest to. Only items that are the same film, with the same
      title, year and genres, share it.

    Args:
        items: The films to be found, (N,).
        films: The films to choose from, (F,).

    Returns:
        (N,) positions in ``films``, ``None`` where no film is the item beyond doubt.
    """
    index: dict[str, list[int]] = defaultdict(list)
    for position, film in enumerate(films):
        for key in film.keys:
            index[key].append(position)
    offers = []  # (how far apart, item, film), for all pairs that may be the same
    for number, item in enumerate(items):
        near = {
            position: far
            for position in sorted({position for key in item.keys for position in index.get(key, ())})
            if (far := _distance(item, films[position])) is not None
        }
        nearest = [position for position, far in near.items() if far == min(near.values())]
        if len(nearest) == 1:  # else nothing tells which
            offers.append((near[nearest[0]], number, nearest[0]))
    found: list[int | None] = [None] * len(items)
    owners: dict[int, list[int]] = defaultdict(list)
    for _, number, position in sorted(offers):
        if all(_same(items[number], items[owner]) for owner in owners[position]):
            owners[position].append(number)
            found[number] = position
    return found


def _distance(item: Film, film: Film) -> tuple[bool, int, int, float] | None:
    """How far apart two films are, or None if they cannot be the same, or may well not be.

    Returns:
        Whether only parts of the titles agree, years, level of the key that they share, genres not shared.
    """
    years = max((abs(a - b) for a in item.years for b in film.years), default=YEARS_APART + 1)
    shared = [(level, film.keys[key]) for key, level in item.keys.items() if key in film.keys]
    # Two parts that agree say nothing: "Alien: Resurrection" is not "Halloween: Resurrection".
    level = min((max(levels) for levels in shared if min(levels) < LOOSE), default=None)
    if level is None or years > _YEARS_APART[level]:
        return None
    both, either = item.kinds & film.kinds, item.kinds | film.kinds
    if item.kinds and film.kinds and ("documentary" in both) != ("documentary" in either):
        return None
    if not both and ((item.kinds and film.kinds) or (level > 0 and years > 0)):
        longest = max((len(key.split()) for key in item.strict & film.strict), default=0)
        if not ((level < LOOSE and years == 0) or (longest > 2 and years == 1)):
            return None
    return level >= LOOSE, years, level, 1 - len(both) / max(len(either), 1)


def _same(one: Film, other: Film) -> bool:
    """Whether two items of one catalog are the same film, listed twice."""
    return bool(one.strict & other.strict) and one.years == other.years and one.kinds == other.kinds


# ---------------------------------------------------------------------- titles

_GENRES = {  # in one vocabulary; what one catalog calls noir is crime and mystery in the other
    "animation": ("animated",),
    "biography": ("drama",),
    "children": ("family",),
    "children's": ("family",),
    "disaster": ("action",),
    "film-noir": ("crime", "mystery", "thriller"),
    "historical": ("drama",),
    "legal": ("drama",),
    "martial arts": ("action",),
    "music": ("musical",),
    "noir": ("crime", "mystery", "thriller"),
    "political": ("drama",),
    "romantic": ("romance",),
    "satire": ("comedy",),
    "sci-fi": ("science fiction",),
    "slasher": ("horror",),
    "spy": ("thriller",),
    "superhero": ("action",),
    "supernatural": ("horror",),
    "suspense": ("thriller",),
}
LOOSE = 2  # from this level on, a key is a part of the title
_YEARS_APART = (YEARS_APART, 1, 1, 0)  # at most, by level: the less the titles agree, the more the years must

_WORDS = {
    **{name: str(n) for n, name in enumerate(("one", "two", "three", "four", "five", "six", "seven"), 1)},
    **{"eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13"},
    **{"first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "sixth": "6th"},
    **{"seventh": "7th", "eighth": "8th", "ninth": "9th", "tenth": "10th", "twelfth": "12th"},
    **{roman: str(n) for n, roman in enumerate(("ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"), 2)},
    **{"blvd": "boulevard", "mr": "mister", "dr": "doctor", "st": "saint", "vs": "versus", "n": "and"},
}
_ARTICLES = frozenset(
    (
        *("the", "a", "an", "le", "la", "les", "l", "un", "une", "il", "lo", "el", "los", "las"),
        *("der", "die", "das"),
    )
)
_TRAILING_ARTICLE = re.compile(r"^(?P<rest>.+), (?P<article>The|A|An)$")
_EDITION = re.compile(
    r"[\s:,(-]*\b(?:(?:the )?(?:director|producer)['\u2019]?s? (?:cut|edition)"
    r"|(?:special|extended|restored|unrated|remastered) (?:edition|version|cut)|the movie)\)?$",
    re.IGNORECASE,
)
_OWNER = re.compile(r"^(?:[A-Z][\w.\u2019'-]* ){1,3}?(?:[A-Z][\w-]*['\u2019]s?|[Pp]resents:?) (?=\S+ \S)")
_SEQUEL = re.compile(
    r"^(?P<title>.+?),? (?:Part |Chapter |Episode )?(?P<number>[IVX]+|\d+)(?:: | [-\u2013] )(?P<subtitle>.+)$"
)
_SUBTITLE = re.compile(r"^(?P<title>.+?): (?P<episode>Episode [IVX\d]+ [-\u2013] )?(?P<subtitle>\S.*)$")


def _plain(name: str) -> list[str]:
    """The words of a title: no case, accents or punctuation, numbers as digits."""
    text = name.casefold().replace("\u2153", " 1/3").replace("\u00bd", " 1/2")
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = text.translate({ord("\u00f8"): "o", ord("\u0142"): "l", ord("\u00e6"): "ae", ord("$"): "s"})
    text = re.sub(r"['\u2019\u2018`]", "", text)
    text = re.sub(r"(?<=\b\w)\.(?=\w\b)", "", text)  # U.S. -> us
    text = re.sub(r"(?<=\s)[&+](?=\s)", "and", text)
    words = [_WORDS.get(word, word) for word in re.findall(r"[^\W_]+", text)]
    return [
        word
        for at, word in enumerate(words)
        if not (word == "part" and at + 1 < len(words) and words[at + 1].isdigit())
    ]


@lru_cache(maxsize=1 << 16)
def title_keys(name: str) -> dict[str, int]:
    """The keys of a title, each with its level; equal keys mean that two titles may be the same.

    ===== ==============================================================================================
    level what the key leaves out
    ===== ==============================================================================================
    0     case, accents, punctuation, the note of an edition ("Director's Cut"); a number is a number however
          it is written
    1     the article in front; spaces and doubled letters ("RocketMan")
    2     a name in front ("Bram Stoker's ..."), or a sequel's number before its subtitle, or the subtitle
          after its number
    3     all but the subtitle
    ===== ==============================================================================================

    >>> title_keys("The Sixth Man")
    {'the 6th man': 0, '6th man': 1, '=6thman': 1}

    Args:
        name: A title, article in front.

    Returns:
        Key -> level.
    """
    keys: dict[str, int] = {}

    def add(text: str, level: int) -> None:
        text = _TRAILING_ARTICLE.sub(r"\g<article> \g<rest>", text)
        words = _plain(_EDITION.sub("", text) or text)
        if not words:
            return
        keys.setdefault(" ".join(words), level)
        if len(words) > 1 and words[0] in _ARTICLES:
            words = words[1:]
            keys.setdefault(" ".join(words), max(level, 1))
        for joined in ("".join(words), re.sub(r"(.)\1", r"\1", "".join(words))):  # Marshalls, Marshals
            keys.setdefault("=" + joined, max(level, 1))

    add(name, 0)
    if match := _OWNER.match(name):
        add(name[match.end() :], 2)
    if match := _SEQUEL.match(name):
        add(f"{match['title']} {match['subtitle']}", 2)
        if match["number"] not in ("1", "I"):
            add(f"{match['title']} {match['number']}", 2)
    if match := _SUBTITLE.match(name):
        add(match["subtitle"], 3)
        if match["episode"]:
            add(match["title"], 3)
    return keys


def alternative_titles(title: str) -> tuple[str, ...]:
    """The names in "Manon of the Spring (Manon des sources)": the one in front, and those in brackets."""
    front = re.sub(r"\s*\([^()]*\)", "", title).strip()
    inside = (re.sub(r"^(?:a\.?k\.?a\.?|or)\s+", "", name) for name in re.findall(r"\(([^()]*)\)", title))
    return tuple(name for name in (front, *inside) if name != title and _EDITION.sub("", name))
