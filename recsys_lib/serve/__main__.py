"""Starts the service: ``python -m recsys_lib.serve models/shop``."""

import argparse
import logging
import os
import sqlite3
import sys
from pathlib import Path

import torch

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recsys_lib.serve",
        description="Serves a saved pipeline. The environment variable RECSYS_API_KEY sets a key to ask for.",
    )
    parser.add_argument("folder", type=Path, help="that Pipeline.save_pretrained wrote")
    parser.add_argument("--events", type=Path, help="the file of events; beside the folder by default")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (this machine alone)")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--allowed-host", action="append", default=[], help="a name it is addressed by")
    parser.add_argument("--seconds", type=float, default=10.0, help="after which an answer is given up")
    parser.add_argument("--workers", type=int, default=2, help="threads that answer")
    parser.add_argument("--reload-seconds", type=float, default=2.0, help="0: no look for a newer pipeline")
    options = parser.parse_args(arguments)
    try:
        import uvicorn

        from recsys_lib.serve.app import Settings, create_app
    except ImportError as error:
        print(f"{error}; the service needs: pip install 'recsys-lib[serve]'", file=sys.stderr)
        return 1
    key = os.environ.get("RECSYS_API_KEY") or None
    if options.host not in _LOOPBACK and key is None:
        print(
            f"{options.host} can be reached from other machines: set RECSYS_API_KEY, or listen at 127.0.0.1",
            file=sys.stderr,
        )
        return 1
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    torch.set_num_threads(1)  # requests are answered side by side; more threads in each would only fight
    folder = options.folder.expanduser().absolute()  # a link that is moved to another pipeline stays a link
    hosts = tuple(dict.fromkeys([*Settings.hosts, options.host, *options.allowed_host]))
    try:
        settings = Settings(
            folder=folder,
            events=options.events or folder.with_name(folder.name + ".events.sqlite"),
            api_key=key,
            hosts=hosts,
            seconds=options.seconds,
            workers=options.workers,
            reload_seconds=options.reload_seconds,
        )
        app = create_app(settings)
    except (OSError, ValueError, sqlite3.Error) as error:
        print(f"cannot serve {folder}: {error}", file=sys.stderr)
        return 1
    print(f"http://{options.host}:{options.port}/ (the interface: /docs)", flush=True)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        access_log=False,  # it would name paths, and these name items
        log_config=None,
        server_header=False,
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        limit_concurrency=1000,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
