"""Fixtures that the library's tests share."""

import http.server
import os
import sys
import threading
from collections.abc import Callable, Iterator

import pandas as pd
import pytest
import torch
from torch.overrides import TorchFunctionMode

from recsys_lib.data import Interactions, MovieLens, load_movielens
from recsys_lib.devices import resolve_device

DEVICE = os.environ.get("RECSYS_TEST_DEVICE") or "cpu"
# What "auto" means here: a test that names no device compares with numbers on the CPU, on any machine.
os.environ["RECSYS_DEVICE"] = "cpu"

# The tests' problems are small: on a busy machine a second thread waits longer than it works.
torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"RECSYS_TEST_DEVICE: {DEVICE}"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where models are fitted and score: the device that ``RECSYS_TEST_DEVICE`` names, else the CPU."""
    try:
        return resolve_device(DEVICE)
    except ValueError as error:
        pytest.fail(f"RECSYS_TEST_DEVICE: {error}", pytrace=False)


@pytest.fixture(scope="session")
def movielens() -> MovieLens:
    """MovieLens-100K, from the cache; fetched the first time."""
    return load_movielens("100k", progress=False)


@pytest.fixture
def small() -> Interactions:
    """Eleven events of four users on five items; some are tied in time, and nobody touched item e."""
    rows = [
        # user, item, rating, timestamp
        ("ann", "a", 5.0, 10),
        ("ann", "b", 4.0, 20),
        ("ann", "c", 2.0, 30),
        ("ann", "d", 5.0, 30),
        ("bob", "a", 4.0, 5),
        ("bob", "b", None, 6),
        ("bob", "d", 3.0, 7),
        ("cat", "c", 5.0, 40),
        ("cat", "a", 1.0, 40),
        ("cat", "b", 4.0, 41),
        ("dan", "d", 4.0, 50),
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return Interactions.from_frame(frame, item_ids=["a", "b", "c", "d", "e"])


class FileServer(http.server.ThreadingHTTPServer):
    """A web server on this machine whose answers a test decides.

    ``files`` maps paths to contents. ``faults`` maps a path to functions that answer its next requests,
    one each; afterwards it is served as it should be, with ranges. ``requests`` lists what was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Callable[[http.server.BaseHTTPRequestHandler, bytes], None]]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path = self.path
        wanted = self.headers.get("Range")
        self.server.requests.append((path, wanted))
        content = self.server.files.get(path)
        faults = self.server.faults.get(path)
        if faults:
            faults.pop(0)(self, content or b"")
        elif content is None:
            self.send_error(404)
        elif wanted and self.headers.get("If-Range", '"v1"') == '"v1"':
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self._send_body(content[start:])
        else:
            self.send_response(200)
            self._send_body(content)

    def _send_body(self, body: bytes) -> None:
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A :class:`FileServer` that runs for one test."""
    instance = FileServer()
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield instance
    instance.over.set()
    instance.shutdown()
    instance.server_close()


FACTORIES = {
    getattr(torch, name)
    for name in (
        *(
            "zeros",
            "ones",
            "empty",
            "full",
            "arange",
            "tensor",
            "as_tensor",
            "eye",
            "linspace",
            "rand",
            "randn",
        ),
        *("randint", "randperm", "normal", "tril_indices", "triu_indices", "scalar_tensor", "from_numpy"),
    )
}


class NoImplicitDevice(TorchFunctionMode):
    """Refuses the library's calls that make a tensor without saying where.

    On a machine without a GPU such a tensor is always on the right device; anywhere else it is not.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        from_tensor = func is torch.as_tensor and isinstance(args[0], torch.Tensor)  # keeps its device
        if func in FACTORIES and kwargs.get("device") is None and not from_tensor:
            caller = sys._getframe(1)
            if "recsys_lib" in caller.f_code.co_filename:
                where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
                raise AssertionError(f"{func.__name__} without a device in {where}")
        return func(*args, **kwargs)


@pytest.fixture
def explicit_devices() -> NoImplicitDevice:
    """Within it, the library makes no tensor without saying where."""
    return NoImplicitDevice()
