"""What the tests of the book share: the built pages, and a server of them on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_checks import Site, serve, unavailable

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def html() -> Path:
    """The built pages."""
    if not (HTML / "index.html").is_file():
        unavailable(f"the book is not built: {HTML} holds no index.html; run `make book`")
    return HTML


@pytest.fixture(scope="session")
def site(html: Path) -> Site:
    """The built pages, parsed on demand."""
    return Site(html)


@pytest.fixture(scope="session")
def server(html: Path) -> Iterator[str]:
    """The address of a server of the built pages, without a slash at its end."""
    with serve(html) as address:
        yield address
