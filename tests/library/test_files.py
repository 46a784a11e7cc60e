"""A file is there and whole, or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_lib import files
from recsys_lib.files import write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ("first", "second"):
        with write_whole(file) as part:
            assert part.parent == tmp_path  # a rename across file systems is a copy
            part.write_text(text)
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == text
        assert names(tmp_path) == ["a.json"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with write_whole(tmp_path / "whole") as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))  # a writer that makes its own, private file
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("before", [None, "before"])
def test_what_fails_leaves_the_former_file(tmp_path: Path, before: str | None) -> None:
    file = tmp_path / "a.json"
    if before is not None:
        file.write_text(before)

    def interrupted() -> None:
        with write_whole(file) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ([] if before is None else ["a.json"])
    assert before is None or file.read_text() == before


def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    file.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), write_whole(file) as part:
        part.write_text("after")
    assert names(tmp_path) == ["a.json"]
    assert file.read_text() == "before"


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (done.append("sync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda part, path: (done.append("name"), replace(part, path))[1])
    with write_whole(tmp_path / "a") as part:
        part.write_text("x")
    assert done == (["sync", "name", "sync"] if os.name == "posix" else ["sync", "name"])


def test_a_killed_process_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("before")
    script = (
        "import os, pathlib, signal, sys\n"
        "from recsys_lib.files import write_whole\n"
        "with write_whole(pathlib.Path(sys.argv[1])) as part:\n"
        "    part.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert killed.returncode != 0
    assert file.read_text() == "before"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with write_whole(file) as one, write_whole(file) as other:
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one"  # the outer block ends last
    assert names(tmp_path) == ["a"]
