"""Give the theme the repository's address, which is decided in ``pyproject.toml`` alone.

``[project.urls] Repository`` names the repository. In GitHub's workflows ``GITHUB_REPOSITORY``
(``owner/name``) overrides it, so that a fork publishes pages whose buttons point at the fork.

Files that are read outside the book must repeat the address: ``python -m book._ext.repository_address``
writes it into them.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

BRANCH = "main"
# Files that repeat the address. They link to no other repository, so every address of one in them is meant.
REPEATED = ("README.md", "CITATION.cff")
_GITHUB = re.compile(r"https://github\.com/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?")


def repository_url(root: Path) -> str:
    """Return the repository's address, without a trailing slash.

    Args:
        root: the folder of ``pyproject.toml``.

    Raises:
        ConfigError: the address is missing or is not ``https://github.com/OWNER/NAME``.
    """
    in_workflow = os.environ.get("GITHUB_REPOSITORY")
    if in_workflow:
        url = f"https://github.com/{in_workflow}"
    else:
        settings = tomllib.loads((root / "pyproject.toml").read_text("utf8"))
        url = settings.get("project", {}).get("urls", {}).get("Repository", "")
    return _checked(url)


def _checked(url: str) -> str:
    """Return an address without a trailing slash, or refuse it."""
    match = _GITHUB.fullmatch(url)
    if match is None:
        raise ConfigError(
            f"the repository's address {url!r} is not of the form https://github.com/OWNER/NAME; "
            "set [project.urls] Repository in pyproject.toml"
        )
    return f"https://github.com/{match['owner']}/{match['name']}"


def pages_url(repository: str) -> str:
    """Return the address at which GitHub Pages serves a repository's book, with a trailing slash.

    ``https://github.com/OWNER/NAME`` gives ``https://owner.github.io/NAME/``; a repository named
    ``owner.github.io`` is served from the root.
    """
    owner, name = repository.rsplit("/", 2)[-2:]
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def stamped(text: str, repository: str) -> str:
    """Return `text` with every address of a repository, its pages and its Colab links set to `repository`."""
    path = repository.removeprefix("https://github.com/")
    name = r"[\w.-]*\w"
    text = re.sub(rf"https://github\.com/{name}/{name}", repository, text)
    text = re.sub(rf"(?<=colab\.research\.google\.com/github/){name}/{name}(?=/blob/)", path, text)
    return re.sub(rf"https://{name}\.github\.io/(?:{name}/)?", pages_url(repository), text)


def stamp(root: Path) -> list[Path]:
    """Write the address into the files that repeat it; return those that changed."""
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf8"))
    repository = _checked(settings["project"]["urls"]["Repository"])
    changed = []
    for path in (root / name for name in REPEATED):
        text = path.read_text("utf8")
        if stamped(text, repository) != text:
            path.write_text(stamped(text, repository), encoding="utf8")
            changed.append(path)
    return changed


def set_address(app: Sphinx, config: Config) -> None:
    """Fill in every setting that depends on the address (``config-inited``)."""
    url = repository_url(Path(app.srcdir))
    config.book_repository = url
    config.html_theme_options.update(
        repository_url=url,
        repository_branch=BRANCH,
        path_to_docs="",
        use_repository_button=True,
        use_edit_page_button=True,
        use_issues_button=True,
    )
    config.html_baseurl = config.ogp_site_url = pages_url(url)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("book_repository", "", "env", str)
    app.connect("config-inited", set_address, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for changed in stamp(Path(__file__).resolve().parents[2]):
        print(f"wrote the repository's address into {changed.name}")
