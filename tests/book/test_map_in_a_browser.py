"""The map of vectors in a real browser: what a reader can do with it, on a screen and on paper."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from page_checks import (
    PHONE,
    SHEET,
    access_problems,
    contrast_problems,
    dark_figure_problems,
    image_problems,
    print_problems,
    visit,
    width_problems,
)
from playwright.sync_api import Browser, Page

from recsys_lib.chapter import PALETTE
from recsys_lib.chapter.map import VectorMap

HOSTILE = "</script><img src=x onerror='throw 1'>"
LABELS = ["Toy Story (1995)", "Amélie (2001)", "Heat (1995)", HOSTILE, "Toy Soldiers (1991)"]
POINTS = [[0, 0], [10, 0], [0, 6], [10, 6], [5, 3]]
HINT = "Point at an item, tap it or search for it to read its name and those of its neighbors."
DARK = """<style>html { background: #14181e; color: #ced6dd; --pst-color-text-base: #ced6dd;
--pst-color-background: #14181e }</style>"""


def small(name: str = "films") -> VectorMap:
    return VectorMap(
        POINTS,
        LABELS,
        caption="Films by taste.",
        alternative="Five films, one in each corner and one in the middle.",
        groups=["family", "drama", "drama", "other", "family"],
        sizes=[100, 10, 50, 0, 20],
        neighbors=[[4, 2], [2, -1], [1, 0], [0, 1], [0, 3]],
        name=name,
    )


def large() -> VectorMap:
    """As many items as MovieLens 100K has, in twenty clouds."""
    rng = np.random.default_rng(0)
    n = 1682
    cloud = rng.integers(20, size=n)
    return VectorMap(
        rng.normal(size=(20, 2))[cloud] + 0.15 * rng.normal(size=(n, 2)),
        [f"The {'long ' * (i % 5)}title of number {i}" for i in range(n)],
        caption="Films by taste.",
        alternative="Twenty clouds of films.",
        groups=[f"group {c % 6}" for c in cloud],
        sizes=600 / np.arange(1, n + 1) ** 0.7,
        neighbors=(np.arange(n)[:, None] + [1, 2, 3, 4, 5]) % n,
    )


def written(folder: Path, *maps: VectorMap, dark: bool = False) -> str:
    body = "".join(one.to_html() for one in maps)
    theme = "dark" if dark else "light"
    file = folder / "map.html"
    file.write_text(
        f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8"><title>Maps</title>'
        f'<meta name="viewport" content="width=device-width">{DARK if dark else ""}'
        f"<main><h1>Maps</h1><article>{body}</article></main></html>",
        encoding="utf8",
    )
    return file.as_uri()


def overlaps(boxes: list[dict[str, float]]) -> list[tuple[dict[str, float], dict[str, float]]]:
    return [
        (a, b)
        for a, b in combinations(boxes, 2)
        if max(a["left"], b["left"]) < min(a["right"], b["right"])
        and max(a["top"], b["top"]) < min(a["bottom"], b["bottom"])
    ]


def says(page: Page) -> str:
    return page.locator(".says").inner_text()


def visible_names(page: Page, parts: str = "svg.map .name") -> list[dict[str, float]]:
    """The boxes of the names that are to be seen, on the screen."""
    boxes: list[dict[str, float]] = page.eval_on_selector_all(
        parts,
        """all => all.filter(e => e.getBoundingClientRect().width).map(e => {
          const {left, right, top, bottom} = e.getBoundingClientRect();
          return {left, right, top, bottom};
        })""",
    )
    return boxes


def test_a_search_marks_counts_and_lists(tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, small()), width=PHONE) as seen:
        page = seen.page
        box = page.get_by_role("searchbox", name="Search the map:")
        status = page.locator(".status")
        assert status.get_attribute("aria-live") == "polite"
        box.fill("toy")
        assert status.inner_text() == "2 matches."
        assert page.locator("svg.map .item.found").count() == 2
        assert page.locator(".matches button").all_inner_texts() == [
            "Toy Story (1995)",
            "Toy Soldiers (1991)",
        ]
        dim = page.eval_on_selector_all("svg.map .item", "all => all.map(e => +getComputedStyle(e).opacity)")
        assert sorted(dim) == [0.12, 0.12, 0.12, 1, 1]
        box.fill("AMELIE")
        assert status.inner_text() == "1 match."
        box.fill("no such film")
        assert status.inner_text() == "No matches."
        assert page.locator(".found").count() == 0
        box.fill("heat")
        box.press("Escape")
        assert box.input_value() == status.inner_text() == ""
        assert page.locator(".searching, .matches button").count() == 0
        assert not seen.problems() + width_problems(page)


def test_a_keyboard_is_enough(tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, small())) as seen:
        page = seen.page
        page.get_by_role("searchbox").focus()
        page.keyboard.type("toy")
        page.keyboard.press("Tab")
        assert says(page) == "Toy Story (1995) (family). Nearest in all dimensions:"
        near = page.locator(".neighbors button:visible")
        assert near.all_inner_texts() == ["Toy Soldiers (1991)", "Heat (1995)"]
        page.keyboard.press("Tab")
        assert says(page).startswith("Toy Soldiers (1991) (family)")
        assert near.all_inner_texts() == ["Toy Story (1995)", HOSTILE]
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # the second neighbor
        assert says(page) == f"{HOSTILE} (other). Nearest in all dimensions:"
        assert near.all_inner_texts() == ["Toy Story (1995)", "Amélie (2001)"]
        assert page.evaluate("document.activeElement.textContent") == "Amélie (2001)"  # the focus stays
        page.keyboard.press("Enter")
        assert says(page).startswith("Amélie (2001) (drama)")
        assert page.evaluate("document.activeElement.textContent") == "Heat (1995)"  # there is no second one
        assert near.all_inner_texts() == ["Heat (1995)"]
        page.keyboard.press("Escape")
        assert says(page) == HINT
        assert near.count() == 0
        assert page.evaluate("document.activeElement.type") == "search"
        assert not seen.problems()


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_an_item_that_is_pointed_at_says_what_it_is(width: int, tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, small()), width=width) as seen:
        page = seen.page
        items = {  # by what the script knows: large ones first
            name: page.locator("svg.map .item").nth(place)
            for place, name in enumerate(LABELS[i] for i in np.argsort([-100, -10, -50, 0, -20]))
        }
        for name, item in items.items():
            item.hover()
            assert says(page).startswith(f"{name} (")
            assert page.locator(".pointer text").text_content() == (
                name if len(name) <= 34 else f"{name[:33]}…"
            )
            assert page.locator(".pointer .ring").count() == 1
            (label,) = visible_names(page, ".pointer text")
            frame = page.locator("svg.map").bounding_box()
            assert frame is not None
            assert label["left"] >= frame["x"]
            assert label["right"] <= frame["x"] + frame["width"]
        page.mouse.move(1, 1)
        assert says(page)  # what was read last stays, so that its neighbors can be reached
        items["Heat (1995)"].click()
        assert says(page).startswith("Heat (1995) (drama)")
        page.get_by_role("button", name="Amélie (2001)").click()
        assert says(page).startswith("Amélie (2001) (drama)")
        assert page.locator("img").count() == 1  # the picture; no title became one
        assert not seen.problems()


def test_a_group_is_hidden_and_shown(tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, small())) as seen:
        page = seen.page
        drama = page.get_by_role("button", name="drama")
        assert drama.get_attribute("aria-pressed") == "true"
        drama.click()
        assert drama.get_attribute("aria-pressed") == "false"
        assert page.locator("svg.map .item:visible").count() == 3
        page.get_by_role("searchbox").fill("199")
        assert page.locator(".status").inner_text() == "2 matches in the groups shown."
        drama.click()
        assert page.locator(".status").inner_text() == "3 matches."
        assert page.locator("svg.map .item:visible").count() == 5
        assert not seen.problems()


def test_groups_differ_in_color_and_in_shape(tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, large())) as seen:
        looks = seen.page.eval_on_selector_all(
            "svg.map .item", "all => all.map(e => e.getAttribute('fill') + e.getAttribute('d'))"
        )
        assert len(looks) == 1682
        assert len(set(looks)) == len({look[:7] for look in looks}) == len({look[7:] for look in looks}) == 6
        assert {look[:7] for look in looks} == set(PALETTE)
        legend = seen.page.eval_on_selector_all(
            "figure button path", "all => all.map(e => e.getAttribute('fill') + e.getAttribute('d'))"
        )
        assert set(legend) == set(looks)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_it_reads_well(width: int, dark: bool, tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, large(), dark=dark), width=width, dark=dark) as seen:
        page = seen.page
        names = visible_names(page)
        assert len(names) == (6 if width == PHONE else 12)
        assert not overlaps(names)
        tall = min(name["bottom"] - name["top"] for name in names)
        assert tall >= 10  # letters of ten pixels and more
        page.get_by_role("searchbox").fill("number 16")
        assert page.locator(".status").inner_text().endswith("the first 8 are listed.")
        page.locator(".matches button").first.focus()
        assert not seen.problems() + width_problems(page) + contrast_problems(page) + access_problems(page)
        if dark:
            assert not dark_figure_problems(page.locator("svg.map"), as_it_is=False)


def test_paper_gets_the_picture(tmp_path: Path, browser: Browser) -> None:
    uri = written(tmp_path, small(), dark=True)
    with visit(browser, uri, width=SHEET, dark=True) as seen:
        page = seen.page
        page.get_by_role("searchbox").fill("toy")
        assert not print_problems(page)
        page.emulate_media(media="print")
        assert page.locator("figure > img").is_visible()
        assert page.locator("figure > img").evaluate("e => e.complete && e.naturalWidth") == 1000
        assert page.locator("figure > img").evaluate("e => getComputedStyle(e).filter") == "none"
        assert not page.locator(".live-part").is_visible()
        assert not seen.problems()


def test_without_scripts_there_is_the_picture(tmp_path: Path, browser: Browser) -> None:
    uri = written(tmp_path, small())
    context = browser.new_context(java_script_enabled=False, viewport={"width": PHONE, "height": 900})
    page = context.new_page()
    page.goto(uri)
    picture = page.get_by_role("img", name="Five films, one in each corner and one in the middle.")
    assert picture.is_visible()
    assert page.get_by_role("searchbox").count() == 0
    assert page.get_by_text("Films by taste.").is_visible()
    context.close()
    assert not image_problems(BeautifulSoup((tmp_path / "map.html").read_text("utf8"), "html.parser"))


def test_the_names_in_the_picture_are_drawn_apart(tmp_path: Path, browser: Browser) -> None:
    file = tmp_path / "map.svg"
    file.write_text(large().to_svg(), encoding="utf8")
    with visit(browser, file.as_uri()) as seen:
        names = visible_names(seen.page, ".wide text")
        assert len(names) == 12
        assert not overlaps(names)
        assert not seen.problems()


def test_two_maps_on_a_page_do_not_meddle(tmp_path: Path, browser: Browser) -> None:
    with visit(browser, written(tmp_path, small("a"), small("b"))) as seen:
        page = seen.page
        assert page.locator("svg.map").count() == 2
        page.locator("#fig-b").get_by_role("searchbox").fill("heat")
        assert page.locator("#fig-b .found").count() == 1
        assert page.locator("#fig-a .found").count() == 0
        assert page.locator("#fig-a .status").inner_text() == ""
        page.locator("#fig-a .item").first.hover()
        assert page.locator("#fig-a .says").inner_text().startswith("Toy Story")
        assert page.locator("#fig-b .says").inner_text() == HINT
        known = page.evaluate(
            "['data', 'items', 'figure', 'point', 'marks', 'xy'].filter(name => name in window)"
        )
        assert known == []
        assert not seen.problems() + access_problems(page)


def test_a_map_of_one_kind_has_no_legend_and_no_neighbors(tmp_path: Path, browser: Browser) -> None:
    plain = VectorMap(POINTS, LABELS, caption="Films.", alternative="Five films.")
    with visit(browser, written(tmp_path, plain)) as seen:
        page = seen.page
        assert says(page) == "Point at an item, tap it or search for it to read its name."
        assert page.get_by_role("button").count() == page.get_by_role("group").count() == 0
        page.locator("svg.map .item").first.hover()
        assert re.fullmatch(r"Toy Story \(1995\)", says(page))
        assert not seen.problems() + access_problems(page)
