"""The explorer of attention weights in a real browser: what a reader can do with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from page_checks import PHONE, contrast_problems, visit, width_problems
from playwright.sync_api import Browser, Locator

from recsys_lib.chapter.explorer import AttentionExplorer

TOKENS = ["[CLS]", "toy", "story", "[SEP]"]


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    """Head 1 of layer 1 looks at the token itself; head 2 at the token before it."""
    w = np.zeros((1, 2, 4, 4))
    w[0, 0] = np.eye(4)
    w[0, 1, range(4), [0, 0, 1, 2]] = 1.0
    small = np.full((1, 2, 1, 1), 0.25)
    shown = AttentionExplorer(
        ["Toy Story", "Heat"], [TOKENS, ["heat"]], [w, small], presets={"previous": (0, 1), "itself": (0, 0)}
    )
    file = tmp_path / "explorer.html"
    file.write_text(f'<!doctype html><html lang="en"><article>{shown.to_html()}</article>', encoding="utf8")
    return file


def plain(element: Locator) -> str:
    """A text in which spaces of both kinds read alike."""
    return element.inner_text().replace("\N{NO-BREAK SPACE}", " ")


def test_it_shows_what_is_chosen(page_file: Path, browser: Browser) -> None:
    with visit(browser, page_file.as_uri(), width=PHONE) as seen:
        page = seen.page
        says = page.locator("#attention-says")
        assert plain(says) == (
            "Layer 1, head 2. Each token looks most at: [CLS] → [CLS] 100 %; toy → [CLS] 100 %; "
            "story → toy 100 %; [SEP] → story 100 %."
        )
        assert page.locator("#attention-drawing rect").count() == 16
        opacities = page.eval_on_selector_all(
            "#attention-drawing rect", "all => all.map(r => +r.getAttribute('fill-opacity'))"
        )
        assert [i for i, opacity in enumerate(opacities) if opacity == 1] == [0, 4, 9, 14]
        page.get_by_role("button", name="itself").click()
        assert "toy → toy 100 %" in plain(says)
        assert page.get_by_role("combobox", name="Head").input_value() == "0"
        page.get_by_role("combobox", name="Title").select_option("Heat")
        assert plain(says) == "Layer 1, head 1. Each token looks most at: heat → heat 25 %."
        page.get_by_role("combobox", name="Head").select_option("2")
        assert says.inner_text().startswith("Layer 1, head 2.")
        assert not seen.problems() + width_problems(page) + contrast_problems(page)


def test_without_presets_there_are_no_buttons(tmp_path: Path, browser: Browser) -> None:
    file = tmp_path / "explorer.html"
    file.write_text(
        AttentionExplorer(["Heat"], [["heat"]], [np.ones((1, 1, 1, 1))]).to_html(), encoding="utf8"
    )
    with visit(browser, file.as_uri()) as seen:
        assert not seen.page.get_by_text("Go to:").is_visible()
        assert seen.page.get_by_role("img").get_attribute("aria-label").startswith("Layer 1, head 1.")
        assert not seen.problems()
