"""The workflow that publishes the book, and the files that stand beside it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

from book._ext.repository_address import BRANCH, REPEATED, stamped

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def repository() -> str:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
    return settings["project"]["urls"]["Repository"]


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text("utf8"))


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_follows_the_schema(path: Path) -> None:
    checked = check_schema(path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_schema_check_can_fail(tmp_path: Path) -> None:
    broken = tmp_path / "book.yml"
    broken.write_text("on: push\njobs:\n  build:\n    runs-on: ubuntu-24.04\n    step: []\n", encoding="utf8")
    assert check_schema(broken).returncode != 0


def test_rights_are_the_least(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["build"]
    assert workflow["jobs"]["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}


def test_actions_are_pinned(workflow: dict[str, Any]) -> None:
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", action), action


def test_no_text_from_outside_reaches_a_shell(workflow: dict[str, Any]) -> None:
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")


def test_nothing_is_published_unchecked(workflow: dict[str, Any]) -> None:
    jobs = workflow["jobs"]
    runs = [step.get("run", "") for step in jobs["build"]["steps"]]
    check = next(place for place, run in enumerate(runs) if "_toc.yml" in run)
    tests = runs.index("bash .ci/run")
    upload = next(
        place for place, step in enumerate(jobs["build"]["steps"]) if "pages-artifact" in step.get("uses", "")
    )
    assert tests < check < upload
    assert set(jobs["deploy"]["needs"]) == jobs.keys() - {"deploy"}
    assert f"refs/heads/{BRANCH}" in jobs["deploy"]["if"]
    assert all("timeout-minutes" in job for job in jobs.values())


def test_each_version_lints_and_tests_with_the_python_just_set_up(workflow: dict[str, Any]) -> None:
    steps = workflow["jobs"]["versions"]["steps"]
    (setup,) = [step["with"] for step in steps if "setup-python" in step.get("uses", "")]
    assert setup["python-version"] == "${{ matrix.python }}"
    (run,) = [step["run"] for step in steps if "run" in step]
    assert run.split() == ["make", "lint", "unit", "PYTHON=python"]


def test_missing_page_stops_the_publication(workflow: dict[str, Any], tmp_path: Path) -> None:
    step = next(step for step in workflow["jobs"]["build"]["steps"] if "_toc.yml" in step.get("run", ""))
    (tmp_path / "_toc.yml").write_text((ROOT / "_toc.yml").read_text("utf8"), encoding="utf8")
    toc = (tmp_path / "_toc.yml").read_text("utf8")
    pages = ["index", *re.findall(r"(?:root|file): (\S+)", toc)]
    for page in pages:
        path = tmp_path / "_build" / "html" / f"{page}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<p>page</p>", encoding="utf8")

    def passes() -> bool:
        return subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, check=False).returncode == 0

    assert passes()
    for page in (pages[0], pages[-1]):
        path = tmp_path / "_build" / "html" / f"{page}.html"
        text = path.read_text("utf8")
        path.write_text("", encoding="utf8")
        assert not passes()
        path.unlink()
        assert not passes()
        path.write_text(text, encoding="utf8")


# ---- the files beside it ----


@pytest.mark.parametrize("name", REPEATED)
def test_address_is_that_of_the_project(name: str) -> None:
    text = (ROOT / name).read_text("utf8")
    assert stamped(text, repository()) == text, "run `python -m book._ext.repository_address`"


def test_address_is_repeated_nowhere_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    path = repository().removeprefix("https://github.com/")
    found = set()
    for name in listed.stdout.split("\n"):
        file = ROOT / name
        if (
            name
            and file.is_file()
            and file.suffix in {".py", ".md", ".yml", ".toml", ".cff", ".cfg", ".sh", ""}
        ):
            text = file.read_text("utf8", errors="replace")
            if path in text:
                found.add(name)
    assert found == {"pyproject.toml", *REPEATED}


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [target for target in targets if "://" not in target]
    assert len(inside) > 5
    for target in inside:
        assert (ROOT / target).exists(), target
    for chapter in re.findall(rf"/blob/{BRANCH}/(\S+?)\)", text):
        assert (ROOT / chapter).is_file(), chapter


def test_pictures_of_the_readme_are_small() -> None:
    text = (ROOT / "README.md").read_text("utf8")
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    assert pictures
    for alternative, path in pictures:
        assert alternative.strip()
        assert (ROOT / path).stat().st_size < 150_000


def test_citation_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    assert citation["type"] in {"software", "dataset"}
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    assert citation["license"] == settings["license"] == "MIT"
    assert str(citation["version"]) == settings["version"]


def test_licenses_are_stated() -> None:
    assert (ROOT / "LICENSE").read_text("utf8").startswith("MIT License\n\nCopyright (c) ")
    assert "CC BY 4.0" in (ROOT / "book" / "LICENSE").read_text("utf8")
    readme = (ROOT / "README.md").read_text("utf8")
    for word in ("MIT License", "Creative Commons Attribution 4.0", "MovieLens", "Apache License 2.0"):
        assert word in readme


def test_map_shows_the_chapters_that_exist() -> None:
    drawing = ElementTree.parse(ROOT / "book" / "figures" / "map.svg").getroot()
    assert drawing.find("{*}title") is not None
    assert drawing.find("{*}desc") is not None
    drawn = {part.get("data-chapter"): part for part in drawing.iter() if part.get("data-chapter")}
    toc = re.findall(r"file: notebooks/(\d\d)_", (ROOT / "_toc.yml").read_text("utf8"))
    assert set(drawn) > {"01", "02", "99"}
    for number, part in drawn.items():
        dashed = "coming" in part.find("{*}rect").get("class", "").split()
        assert (part.get("data-state") == "ready") == (number in toc) == (not dashed), f"chapter {number}"


def test_references_are_complete() -> None:
    text = (ROOT / "book" / "references.bib").read_text("utf8")
    entries = re.split(r"\n(?=@)", text.strip())
    keys = [re.match(r"@\w+\{([\w]+),", entry)[1] for entry in entries]
    assert len(keys) == len(set(keys))
    assert keys == sorted(keys)
    for entry in entries:
        for part in ("author", "title", "year"):
            assert re.search(rf"^\s*{part}\s*=\s*\{{\S", entry, re.MULTILINE), f"{entry[:40]} has no {part}"


def test_the_map_follows_the_contents() -> None:
    from book.contents import mark_map

    drawing = (
        '<g data-chapter="05" data-state="coming">\n <rect class="box coming" x="1"/></g>'
        '<g data-chapter="01" data-state="ready">\n <rect class="box base" x="1"/></g>'
    )
    marked = mark_map(drawing, "- file: notebooks/05_two_tower\n")
    assert '<g data-chapter="05" data-state="ready">\n <rect class="box" x="1"/>' in marked
    assert '<g data-chapter="01" data-state="coming">\n <rect class="box base coming" x="1"/>' in marked
    contents = (ROOT / "_toc.yml").read_text("utf8")
    map_of_the_book = (ROOT / "book" / "figures" / "map.svg").read_text("utf8")
    assert mark_map(map_of_the_book, contents) == map_of_the_book
