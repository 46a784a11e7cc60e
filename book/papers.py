"""Which paper a link leads to: the addresses of ``references.bib``, and the hosts where papers live.

A chapter cites by an ordinary link to a paper's DOI, to arXiv or to its publisher, so that the citation works
wherever the notebook is read. The book turns such a link into one to the paper's entry in the bibliography.
"""

import functools
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pybtex.database import parse_file

REFERENCES = Path(__file__).resolve().parent / "references.bib"

# Where papers live. A link to one of these is a citation, and needs its entry.
HOSTS = (
    "aclanthology.org",
    "arxiv.org",
    "dl.acm.org",
    "doi.org",
    "ieeexplore.ieee.org",
    "jmlr.org",
    "link.springer.com",
    "nature.com",
    "nips.cc",
    "neurips.cc",
    "openreview.net",
    "proceedings.mlr.press",
    "sciencedirect.com",
    "semanticscholar.org",
    "usenix.org",
)


def place(address: str) -> str:
    """A paper's address in one form, however it is spelled: ``doi:10.1/x``, ``arxiv:1706.03762``, ``host/x``.

    Empty for what is no address of the web.
    """
    parts = urlsplit(address.strip())
    if parts.scheme not in ("http", "https"):
        return ""
    host = (parts.hostname or "").removeprefix("www.").removeprefix("dx.").removeprefix("export.")
    path = unquote(parts.path).strip("/").lower()
    if host in ("doi.org", "dl.acm.org", "link.springer.com") and (doi := re.search(r"10\.\d{4,}/.+", path)):
        return _of_doi(doi[0])
    if host == "arxiv.org" and (
        number := re.search(r"/(.+?)(?:v\d+)?(?:\.pdf)?$", f"/{path.partition('/')[2]}")
    ):
        return f"arxiv:{number[1]}"
    if host == "aclanthology.org":
        return f"acl:{path.removesuffix('.pdf')}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}/{path}{query}"


def _of_doi(doi: str) -> str:
    doi = doi.lower()
    for prefix, kind in (("10.48550/arxiv.", "arxiv:"), ("10.18653/v1/", "acl:")):
        if doi.startswith(prefix):
            return kind + doi.removeprefix(prefix)
    return f"doi:{doi}"


@functools.cache
def entries(references: Path = REFERENCES) -> dict[str, str]:
    """The bibliography's key of each place where one of its papers is to be found."""
    found: dict[str, str] = {}
    for key, entry in parse_file(str(references)).entries.items():
        fields = {name.lower(): str(value) for name, value in entry.fields.items()}
        if doi := fields.get("doi"):
            found[_of_doi(doi)] = key
        if number := fields.get("eprint"):
            found[f"arxiv:{number.lower()}"] = key
        if address := fields.get("url"):
            found[place(address)] = key
    return found


def key_of(address: str, references: Path = REFERENCES) -> str | None:
    """The bibliography's key of the paper that an address leads to, or None if it knows no such paper."""
    return entries(references).get(place(address))


def is_paper(address: str, references: Path = REFERENCES) -> bool:
    """Whether an address is that of a paper, known or not."""
    host = (urlsplit(address).hostname or "").lower()
    on_list = any(host == known or host.endswith(f".{known}") for known in HOSTS)
    return on_list or key_of(address, references) is not None


def is_unknown(address: str, references: Path = REFERENCES) -> bool:
    """Whether an address is that of a paper which the bibliography does not know."""
    return is_paper(address, references) and key_of(address, references) is None
