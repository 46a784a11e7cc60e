"""A model hub on this machine: as much of the Hugging Face hub's interface as fetching a model takes."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"the only one", usedforsecurity=False).hexdigest()


class SmallHub(http.server.ThreadingHTTPServer):
    """Serves folders by the names of models; ``fetched`` lists the files whose content was asked for."""

    daemon_threads = True

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: SmallHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        for name, folder in self.server.models.items():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                about = [{"rfilename": str(file.relative_to(folder))} for file in files]
                self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": about}).encode(), with_body)
                return
            if path.startswith(f"/api/models/{name}/tree/"):
                listing = [
                    {
                        "type": "file",
                        "path": str(file.relative_to(folder)),
                        "size": file.stat().st_size,
                        "oid": _digest(file.read_bytes()),
                    }
                    for file in files
                ]
                self._send(json.dumps(listing).encode(), with_body)
                return
            file = folder / path.removeprefix(f"/{name}/resolve/").partition("/")[2]
            if path.startswith(f"/{name}/resolve/") and file in files:
                if with_body:
                    self.server.fetched.append(f"{name}/{file.relative_to(folder)}")
                self._send(file.read_bytes(), with_body)
                return
        self.send_error(404)

    def _send(self, body: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_digest(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def small_hub(models: dict[str, Path]) -> Iterator[SmallHub]:
    """A hub that runs for a while; for a process with ``HF_ENDPOINT`` set to its address."""
    instance = SmallHub(models)
    threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield instance
    finally:
        instance.shutdown()
        instance.server_close()
