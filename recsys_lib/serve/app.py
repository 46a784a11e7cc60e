"""The service over HTTP: routes, limits, errors, log and numbers about itself."""

import asyncio
import contextlib
import hmac
import logging
import sqlite3
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import APIKeyHeader
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from recsys_lib import __version__
from recsys_lib.pipeline import Stages
from recsys_lib.serve.engine import Engine, Refused
from recsys_lib.serve.schema import (
    Answer,
    BatchAnswer,
    BatchEntry,
    BatchRequest,
    EventsAnswer,
    EventsRequest,
    FieldProblem,
    Found,
    Health,
    Problem,
    RecommendRequest,
    Similar,
)
from recsys_lib.serve.store import EventStore

__all__ = ["Settings", "create_app"]

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("recsys_lib.serve")

# What a page of the service may load: itself, and what Swagger's page draws.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_KINDS = ("int", "str", "constrained-int", "constrained-str")  # of ids, as the checks name them
_DOCS = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Recommendations: the interface</title>
<link rel="stylesheet" href="assets/swagger-ui.css"><link rel="icon" href="data:,"></head>
<body><div id="swagger-ui"></div>
<script src="assets/swagger-ui-bundle.js"></script><script src="static/docs.js"></script></body></html>
"""


@dataclass(frozen=True)
class Settings:
    """How the service is run; nothing of it comes from a request.

    Attributes:
        folder: of the saved pipeline.
        events: the file of events.
        api_key: asked for in the header ``X-API-Key``; None asks for none.
        hosts: names under which it may be addressed; a page elsewhere cannot reach it by another name.
        max_body: bytes of a request's body.
        seconds: an answer that takes longer is given up.
        waiting: requests that may wait or be answered at a time; more are turned away.
        workers: threads that answer.
        reload_seconds: how often a pipeline that was saved anew is looked for; 0 never.
    """

    folder: Path
    events: Path
    api_key: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    max_body: int = 256 * 1024
    seconds: float = 10.0
    waiting: int = 64
    workers: int = 2
    reload_seconds: float = 2.0

    def __post_init__(self) -> None:
        """Refuses a key that no header can hold."""
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ValueError("the key must be of printable ASCII letters: headers hold no others")


class Numbers:
    """What Prometheus reads of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: Any = {"registry": self.registry}
        buckets = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
        self.requests = Counter(
            "recsys_requests_total", "Requests answered", ["route", "method", "status"], **options
        )
        self.seconds = Histogram(
            "recsys_request_seconds", "Time of a request", ["route"], buckets=buckets, **options
        )
        self.stages = Histogram(
            "recsys_stage_seconds", "Time of a stage of a list", ["stage"], buckets=buckets, **options
        )
        self.events = Counter("recsys_events_total", "Events kept", **options)
        self.in_flight = Gauge("recsys_in_flight", "Requests being answered or waiting", **options)
        self.reloads = Counter("recsys_reloads_total", "Pipelines taken up", ["result"], **options)
        self.model = Gauge("recsys_model_info", "The pipeline served", ["version"], **options)

    def stage(self, stages: Stages) -> None:
        """Counts a list."""
        for name, spent in stages.seconds().items():
            self.stages.labels(name).observe(spent)

    def serves(self, version: str) -> None:
        """Names the pipeline that answers from now on."""
        self.model.clear()
        self.model.labels(version).set(1)


class Watch:
    """The outermost layer: who may ask, limits of a body, the log line, the counters, failures.

    The log names the route, never the path, the query or the body: those may say who did what. For the same
    reason an error that nobody foresaw is logged by its kind and its places, without its message.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], settings: Settings, numbers: Numbers) -> None:
        self.app, self.settings, self.numbers = app, settings, numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        self.numbers.in_flight.inc()
        try:
            body = self._refusal(scope) or await self._body(scope, receive)
            if isinstance(body, JSONResponse):
                await body(scope, receive, sent)
            else:
                await self.app(scope, _given(body, receive), sent)
        except Exception as error:  # noqa: BLE001  # the last place where it can be answered
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
            log.error("%s at %s", type(error).__name__, where)
            if not status:
                failed = _problem(500, "failed", "the service has failed; its log says where")
                await failed(scope, receive, sent)
        finally:
            self.numbers.in_flight.dec()
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
            spent = time.perf_counter() - start
            self.numbers.requests.labels(route, method, str(status)).inc()
            self.numbers.seconds.labels(route).observe(spent)
            log.info("%s %s %d %.1f ms", method, route, status, 1000 * spent)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Turns away who addresses it by a name that is not its own, as pages of other sites would."""
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if "*" in self.settings.hosts or name in self.settings.hosts:
            return None
        return _problem(400, "other_host", "the service is not addressed by this name; see --allowed-host")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | JSONResponse:
        """The whole body, or the refusal of one that is too large or does not come."""
        most = self.settings.max_body
        too_large = _problem(413, "too_large", f"a body has at most {most} bytes")
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not stated.isdigit() or int(stated[:20]) > most:
            return too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return _problem(400, "gone", "the request was broken off")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        return too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            return _problem(408, "too_slow", "the body did not arrive in time")


def _given(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and after it what else comes."""
    told = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _problem(status: int, code: str, message: str, fields: list[FieldProblem] | None = None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    problem = Problem(code=code, message=message, fields=fields or [])
    return JSONResponse(problem.model_dump(), status_code=status, headers=headers)


def _field(place: tuple[Any, ...]) -> str:
    """A field's name as a caller would write it: ``requests.3.k``."""
    return ".".join(str(part) for part in place if part not in ("body", "query", "path"))


def _errors(error: RequestValidationError) -> list[FieldProblem]:
    """What is wrong, by field. What was sent is not repeated."""
    found: dict[str, str] = {}
    for one in error.errors():
        place = one["loc"]
        if one["type"] == "json_invalid":
            found.setdefault("body", "this is no JSON")
            continue
        # Between the fields stand the names of kinds: of a request, and of an id.
        branch = 3 if place[1:2] == ("requests",) else 1
        names = [
            part
            for i, part in enumerate(place)
            if not (i == branch and i + 1 < len(place) and part in ("user", "history", "text"))
            and not (isinstance(part, str) and (part in _KINDS or "[" in part))
        ]
        found.setdefault(_field(tuple(names)) or "body", one["msg"])
    return [FieldProblem(field=name, message=message) for name, message in found.items()]


def create_app(settings: Settings) -> FastAPI:
    """Makes the service.

    Args:
        settings: how it is run.

    Returns:
        An application for an ASGI server such as uvicorn. It has loaded the pipeline.

    Raises:
        FileNotFoundError, ValueError: there is no pipeline, or it is damaged.
        OSError, sqlite3.Error: the events cannot be kept there.
    """
    store = EventStore(settings.events)
    engine = Engine(settings.folder, store)
    numbers = Numbers()
    numbers.serves(engine.served.version)
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="answer")
    waiting = 0

    async def answered(ask: Callable[[], T]) -> T:
        """Runs it in a thread, unless too many wait, and gives it up after a while."""
        nonlocal waiting
        if waiting >= settings.waiting:
            raise Refused(503, "too_busy", "too many requests are waiting")
        waiting += 1
        future = asyncio.get_running_loop().run_in_executor(pool, ask)

        def done(_: Any) -> None:
            nonlocal waiting
            waiting -= 1

        future.add_done_callback(done)
        try:
            return await asyncio.wait_for(future, settings.seconds)
        except TimeoutError:
            raise Refused(503, "too_slow", "the answer took too long") from None

    async def look_for_models() -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(settings.reload_seconds)
            failed = engine.reload_failed
            if await loop.run_in_executor(None, engine.reload):
                numbers.reloads.labels("ok").inc()
                numbers.serves(engine.served.version)
                log.info("serving model %s", engine.served.version)
            elif engine.reload_failed and engine.reload_failed != failed:
                numbers.reloads.labels("failed").inc()
                log.error("the pipeline cannot be read (%s); serving the former one", engine.reload_failed)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(look_for_models()) if settings.reload_seconds else None
        yield
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        pool.shutdown(wait=True)
        store.close()

    app = FastAPI(
        title="Recommendations",
        version=__version__,
        description="Lists from a pipeline that was saved by recsys_lib.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.engine, app.state.numbers = engine, numbers

    header = APIKeyHeader(name="X-API-Key", auto_error=False, description="the key, where one is set")

    def may(given: Annotated[str | None, Security(header)]) -> None:
        key = settings.api_key or ""
        if not hmac.compare_digest((given or "").encode(), key.encode()):
            raise Refused(401, "no_key", "this service asks for its key in the header X-API-Key")

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        words = {
            400: "not readable",
            401: "the key is missing or wrong",
            404: "somebody or something that is not known",
            408: "the body did not come",
            409: "not with this model",
            413: "too large",
            422: "a field is wrong",
            503: "too busy, too slow, or the disk refused",
        }
        return {status: {"model": Problem, "description": words[status]} for status in statuses}

    posted = errors(400, 401, 404, 408, 409, 413, 422, 503)
    guarded: Any = {"dependencies": [Depends(may)] if settings.api_key else []}

    @app.post("/recommend", responses=posted, **guarded)
    async def recommend(body: RecommendRequest) -> Answer:
        """A list for a user, for a history, or for a text."""
        answer, stages = await answered(lambda: engine.recommend(body.root))
        numbers.stage(stages)
        return answer

    @app.post("/recommend/batch", responses=posted, **guarded)
    async def recommend_batch(body: BatchRequest) -> BatchAnswer:
        """Several lists; one that cannot be made does not keep the others from being made."""

        def one(request: RecommendRequest) -> BatchEntry:
            try:
                answer, stages = engine.recommend(request.root)
            except Refused as refused:
                return BatchEntry(error=refused.problem)
            numbers.stage(stages)
            return BatchEntry(answer=answer)

        return BatchAnswer(answers=await answered(lambda: [one(request) for request in body.requests]))

    @app.post("/events", responses=posted, **guarded)
    async def events(body: EventsRequest) -> EventsAnswer:
        """Keeps events. They are on the disk when the answer is sent, and count from the next list on."""
        kept = await answered(lambda: engine.keep(body.events, int(time.time())))
        numbers.events.inc(kept)
        return EventsAnswer(kept=kept, known_before=len(body.events) - kept)

    length = Annotated[int, Query(ge=1, le=100)]

    @app.get("/items/{item}/similar", responses=errors(401, 404, 409, 413, 422, 503), **guarded)
    async def similar(item: str, k: length = 10) -> Similar:
        """More like this."""
        return await answered(lambda: engine.similar(item, k))

    @app.get("/items", responses=errors(401, 413, 422, 503), **guarded)
    async def items(query: Annotated[str, Query(min_length=1, max_length=100)], k: length = 10) -> Found:
        """Items by a part of their title, the popular ones first."""
        return await answered(lambda: engine.served.search(query, k))

    @app.get("/health", responses=errors(413, 503))
    async def health() -> Health:
        """Whether it can answer. It can while a newer pipeline cannot be read."""
        served = engine.served
        return Health(
            status="ok",
            model=served.version,
            users=served.pipeline.n_users,
            items=served.pipeline.n_items,
            events=await answered(lambda: len(store)),
            reads_histories=served.pipeline.reads_histories,
            reads_text=served.reads_text,
            last_reload_failed=bool(engine.reload_failed),
        )

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "in Prometheus' format", **text}, **errors(401, 413)},
        **guarded,
    )
    async def metrics() -> Response:
        """Numbers about the service."""
        return Response(generate_latest(numbers.registry), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse((files("recsys_lib.serve") / "static" / "page.html").read_text("utf8"))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS)

    app.mount("/static", StaticFiles(packages=[("recsys_lib.serve", "static")]), name="static")
    app.mount("/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="assets")

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _problem(error.status, error.problem.code, error.problem.message, error.problem.fields)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = _errors(error)
        return _problem(422, "invalid", "; ".join(f"{one.field}: {one.message}" for one in found), found)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        answer = _problem(error.status_code, "http", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(sqlite3.Error)
    async def disk(_: Request, error: sqlite3.Error) -> JSONResponse:
        log.error("events cannot be read or written: %s", type(error).__name__)
        return _problem(503, "not_kept", "events cannot be read or written now")

    app.add_middleware(Watch, settings=settings, numbers=numbers)
    return app
