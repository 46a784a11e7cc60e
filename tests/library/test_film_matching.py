"""Matching films of two catalogs: each rule on a catalog small enough to check by eye."""

from __future__ import annotations

import random

import pytest

from recsys_lib.data import film_matching
from recsys_lib.data.film_matching import Film, alternative_titles, match_films, title_keys
from recsys_lib.data.movielens import clean_title


def film(raw: str, *genres: str, names: tuple[str, ...] = ()) -> Film:
    """A film from a title as MovieLens writes it."""
    title, year = clean_title(raw)
    return Film(title, () if year is None else (year,), genres, (*alternative_titles(title), *names))


@pytest.mark.parametrize(
    ("item", "other"),
    [
        ("Godfather, The (1972)", "The Godfather (1972)"),
        ("Sunset Blvd. (1950)", "Sunset Boulevard (1950)"),
        ("Misérables, Les (1995)", "Les Miserables (1995)"),
        ("Seven (Se7en) (1995)", "Se7en (1995)"),
        ("Manon of the Spring (Manon des sources) (1986)", "Manon des Sources (1986)"),
        ("Jungle2Jungle (a.k.a. Jungle 2 Jungle) (1997)", "Jungle 2 Jungle (1997)"),
        ("Secret of My Succe$s, The (1987)", "The Secret of My Success (1987)"),
        ("Blood & Wine (1997)", "Blood and Wine (1996)"),
        ("Romeo + Juliet (1996)", "Romeo and Juliet (1996)"),
        ("Twelve Monkeys (1995)", "12 Monkeys (1995)"),
        ("Sixth Man, The (1997)", "The 6th Man (1997)"),
        ("Rocky III (1982)", "Rocky 3 (1982)"),
        ("Friday the 13th Part 2 (1981)", "Friday the 13th Part II (1981)"),
        ("Naked Gun 33 1/3: The Final Insult (1994)", "Naked Gun 33⅓: The Final Insult (1994)"),
        ("Naked Gun 2 1/2: The Smell of Fear, The (1991)", "The Naked Gun 2½: The Smell of Fear (1991)"),
        ("Rocket Man (1997)", "RocketMan (1997)"),
        ("U.S. Marshalls (1998)", "U.S. Marshals (1998)"),
        ("Blade Runner (Director's Cut) (1982)", "Blade Runner (1982)"),
        ("Blade Runner: The Director’s Cut (1982)", "Blade Runner (1982)"),
        ("Star Trek: The Wrath of Khan (1982)", "Star Trek II: The Wrath of Khan (1982)"),
        ("Poison Ivy II (1995)", "Poison Ivy II: Lily (1996)"),
        ("Star Wars: Episode V - The Empire Strikes Back (1980)", "The Empire Strikes Back (1980)"),
        ("Star Wars: Episode IV - A New Hope (1977)", "Star Wars (1977)"),
        ("Robert A. Heinlein's The Puppet Masters (1994)", "The Puppet Masters (1994)"),
        ("First Strike (1996)", "Jackie Chan's First Strike (1997)"),
        ("Professional, The (1994)", "Léon: The Professional (1994)"),
        ("Jerky Boys, The (1994)", "The Jerky Boys: The Movie (1995)"),
        ("Searching for Bobby Fischer (1993)", "Searching for Bobby Fischer (1995)"),
    ],
)
def test_one_film_under_two_titles(item: str, other: str) -> None:
    assert match_films([film(item, "Drama", "Sci-Fi")], [film(other, "Science Fiction")]) == [0]


@pytest.mark.parametrize(
    ("item", "other"),
    [
        ("Magnificent Seven, The (1954)", "The Magnificent Seven (1960)"),  # too far away in years
        ("Rocky II (1979)", "Rocky (1979)"),
        ("Rocky (1979)", "Rocky II (1979)"),
        ("Bloodsport 2 (1995)", "Bloodsport III (1996)"),
        ("Alien: Resurrection (1997)", "Halloween: Resurrection (1997)"),
        ("Stephen King's Night Shift (1990)", "Ron Howard's Night Shift (1990)"),
        ("Machine, The (1994)", "Ghost in the Machine (1993)"),
        ("Braindead (1992)", "Brain Dead (1990)"),
        ("Van, The (1996)", "The Fan (1996)"),
        ("Wedding Gift, The (1994)", "The Gift (1994)"),
        ("Blue Angel (Director's Cut) (1990)", "Red Devil (Director's Cut) (1990)"),
        ("Big Momma's House (1986)", "House (1986)"),
        ("Nobody Knows", "Nobody Knows (1980)"),  # a year is missing
        ("Nobody Knows (1980)", "Nobody Knows"),
    ],
)
def test_two_films_under_titles_much_alike(item: str, other: str) -> None:
    assert match_films([film(item, "Drama")], [film(other, "Drama")]) == [None]


def test_the_remake_and_the_original_are_told_apart_by_year() -> None:
    films = [film("Sabrina (1995)"), film("Sabrina (1954)"), film("Sabrina (1996)")]
    items = [film("Sabrina (1954)"), film("Sabrina (1995)"), film("Sabrina (1970)")]
    assert match_films(items, films) == [1, 0, None]


def test_the_nearest_year_wins_over_genres_and_spelling() -> None:
    films = [film("Crash, The (1995)", "Drama"), film("Crash (1996)", "Drama", "Thriller")]
    assert match_films([film("The Crash (1996)", "Drama")], films) == [1]


def test_genres_decide_between_films_of_one_year_and_where_they_do_not_nobody_wins() -> None:
    films = [film("Emma (1996)", "Romance", "Comedy"), film("Emma (1996)", "Horror")]
    assert match_films([film("Emma (1996)", "Horror", "Drama")], films) == [1]
    assert match_films([film("Emma (1996)", "Comedy")], films) == [0]
    assert match_films([film("Emma (1996)", "Western")], films) == [None]
    assert match_films([film("Emma (1996)")], films) == [None]


def test_genres_may_speak_against_a_film() -> None:
    documentary = film("Wonderland (1997)", "Documentary")
    assert match_films([documentary], [film("Wonderland (1997)", "Comedy")]) == [None]
    assert match_films([documentary], [film("Wonderland (1998)", "Documentary")]) == [0]
    assert match_films([film("Fear, The (1995)", "Horror")], [film("Fear (1996)", "Thriller")]) == [None]
    assert match_films([film("Fear (1995)", "Horror")], [film("Fear (1996)", "Thriller")]) == [None]
    # The same title in the same year is enough: catalogs see genres differently.
    assert match_films([film("Brazil (1985)", "Sci-Fi")], [film("Brazil (1985)", "Comedy")]) == [0]
    # What one calls Film-Noir, another calls a crime film.
    assert match_films(
        [film("Third Man, The (1949)", "Mystery")], [film("The Third Man (1950)", "Noir")]
    ) == [0]


def test_a_film_with_two_years_must_fit_with_both() -> None:
    twice = Film("Rampage", (1992, 1987), ("Crime",))
    assert match_films([film("Rampage (1991)", "Crime")], [twice]) == [None]
    assert match_films([film("Rampage (1991)", "Crime")], [Film("Rampage", (1992, 1990), ("Crime",))]) == [0]


def test_a_film_goes_to_one_item_and_to_its_duplicates() -> None:
    films = [film("Money Talks (1997)", "Comedy")]
    twice = [film("Money Talks (1997)", "Comedy"), film("Money Talks (1997)", "Comedy")]
    assert match_films(twice, films) == [0, 0]
    nearer = [film("Money Talks (1996)", "Comedy"), film("Money Talks (1997)", "Comedy")]
    assert match_films(nearer, films) == [None, 0]
    assert match_films(nearer[::-1], films) == [0, None]
    other = [film("Money Talks (1997)", "Drama"), film("Money Talks (1997)", "Comedy")]
    assert match_films(other, films) == [None, 0]


def test_the_other_names_of_a_film_count() -> None:
    named = Film("A Midwinter's Tale", (1995,), ("Comedy",), ("In the Bleak Midwinter",))
    assert match_films([film("In the Bleak Midwinter (1995)", "Comedy")], [named]) == [0]


def test_nothing_to_match() -> None:
    assert match_films([], []) == []
    assert match_films([film("Heat (1995)")], []) == [None]
    assert match_films([Film("...", (1995,))], [Film("!!!", (1995,))]) == [None]


def test_keys_of_a_title() -> None:
    assert title_keys("The Sixth Man") == {"the 6th man": 0, "6th man": 1, "=6thman": 1}
    assert title_keys("Sixth Man, The") == title_keys("The Sixth Man")
    assert title_keys("Cérémonie") == {"ceremonie": 0, "=ceremonie": 1}
    assert title_keys("") == {}


def random_catalog(generator: random.Random, n: int) -> list[Film]:
    """Films whose titles, years and genres collide often."""
    words = ("The Fan", "Fan", "Fan II", "Fan II: The Return", "The Return", "Hamlet", "Ham Let", "Big Fan")
    genres = ("Drama", "Horror", "Documentary", "Film-Noir", "Comedy")
    return [
        Film(
            generator.choice(words),
            (generator.randint(1990, 1999),),
            tuple(generator.sample(genres, generator.randint(0, 2))),
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_no_film_is_too_far_away_and_none_is_given_to_two_items_that_differ(seed: int) -> None:
    generator = random.Random(seed)
    items, films = random_catalog(generator, 60), random_catalog(generator, 40)
    found = match_films(items, films)
    assert any(position is not None for position in found)
    owners: dict[int, Film] = {}
    for item, position in zip(items, found, strict=True):
        if position is None:
            continue
        assert abs(item.years[0] - films[position].years[0]) <= film_matching.YEARS_APART == 2
        assert set(title_keys(item.title)) & set(title_keys(films[position].title))
        first = owners.setdefault(position, item)
        assert (first.title, first.years, first.kinds) == (item.title, item.years, item.kinds)
    # The order in which films are listed decides nothing.
    order = generator.sample(range(len(films)), len(films))
    shuffled = match_films(items, [films[position] for position in order])
    assert [None if at is None else order[at] for at in shuffled] == found
