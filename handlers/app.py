"""The ASGI application: what embeds images straight to its route, everything else through Starlette."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any
from urllib.parse import unquote_to_bytes

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from handlers import index_routes, oip_rest, openai, pages
from handlers.about import about, request_id
from handlers.bulk import bulk
from handlers.documentation import Documentation
from handlers.exchange import (
    Front,
    Message,
    Receive,
    Scope,
    Send,
    exchange,
    turn_away,
)
from handlers.exchange import Request as Exchanged
from handlers.exchange import Route as PlainRoute
from handlers.index_routes import BULK
from handlers.metrics import count_of
from handlers.models import Served
from handlers.predictions import PREDICTIONS, PREFIX
from handlers.refusals import internal_error, retry_after
from handlers.service import RequestError, error_json, to_json

Stream = Callable[[Front, Scope, Receive, Send], Awaitable[None]]
MODEL_PREFIX = "/models/"
OF_MODELS = ("index", "thumbnails")
# Answered without a token where reads are protected: whether all is well, and what shows a page without any data.
OPEN_PATHS = frozenset(("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))
ENDPOINTS = {
    "POST /predictions/NAME": "an image to its embedding, logits, label and neighbours",
    "POST /v1/embeddings": "images to embeddings, as OpenAI's clients ask for them",
    "GET /v1/models": "the models, as OpenAI's clients ask for them",
    "POST /v2/models/NAME/infer": "the Open Inference Protocol: images as UINT8 tensors or as BYTES",
    "PUT, GET, DELETE /index/ID": "a row of the index: an image or a vector under an id",
    "POST /index/search": "neighbours of an image, a vector or a row, filtered",
    "POST /index/bulk": "a stream of rows, as NDJSON or tar",
    "GET /index": "what the index holds and how it is searched",
    "GET /index/map": "the index in two dimensions",
    "GET /thumbnails/ID": "a small picture of a row, where they are kept",
    "GET /models": "what is served: names, versions, sizes, classes",
    "/models/NAME/index...": "the same for the index of another model",
    "GET /": "a page to try all this, for a browser",
    "GET /healthz": "the process is alive",
    "GET /readyz": "the golden vectors have passed: predictions are answered",
    "GET /metrics": "latency by stage, requests, queue depth, for Prometheus",
    "GET /docs": "this API, to read and try",
}


def build_app(front: Front) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """What uvicorn runs."""
    site, documentation = _build_pages(front), Documentation(EXCEPTION_HANDLERS)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await site(scope, receive, send)
            return
        with front.under_way.one():
            scope = _of_model(scope)
            if front.access.protect_reads and not _is_open(scope):
                headers = dict(scope["headers"])
                try:
                    front.access.check_read(headers)
                except RequestError as error:
                    await turn_away(front, Exchanged(scope, headers, request_id(headers)), error, receive, send)
                    return
            route = _route_for(scope)
            if route is None:
                shown = documentation if Documentation.has(scope["path"]) else site
                with suppress(Exception):  # Starlette raises once more what `_broken` has answered and logged
                    await shown(scope, receive, _noting(front, scope, send))
            elif isinstance(route, PlainRoute):
                await exchange(front, route, scope, receive, send)
            else:
                await route(front, scope, receive, send)

    return app


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return path in OPEN_PATHS or path.startswith(pages.FILES) or (path == pages.HOME and pages.wants_page(scope))


def _of_model(scope: Scope) -> Scope:
    """/models/NAME/index... and /models/NAME/thumbnails... are those paths with the model's name beside them."""
    path: str = scope["path"]
    if not path.startswith(MODEL_PREFIX):
        return scope
    name, _, rest = path.removeprefix(MODEL_PREFIX).partition("/")
    pieces = scope["raw_path"].split(b"/", 3)  # nothing, models, NAME, the rest; each may be percent-encoded
    if rest.partition("/")[0] not in OF_MODELS or len(pieces) < 4 or unquote_to_bytes(pieces[2]) != name.encode():
        return scope
    return {**scope, "path": "/" + rest, "raw_path": b"/" + pieces[3], "akin.model": name}


def _route_for(scope: Scope) -> PlainRoute | Stream | None:
    """The plain route that a path has, if it has one."""
    path, method = scope["path"], scope["method"]
    if path.startswith(PREFIX):
        return PREDICTIONS
    if path == BULK and method == "POST":
        return bulk
    return (
        openai.route_for(path)
        or oip_rest.route_for(path)
        or pages.route_for(scope)
        or index_routes.route_for(path, method)
    )


def _noting(front: Front, scope: Scope, send: Send) -> Send:
    """A `send` that adds the headers that every answer carries, and tells the log."""
    headers = dict(scope["headers"])
    request = Exchanged(scope, headers, request_id(headers))
    scope["akin.request"] = request.id

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            seconds = perf_counter() - request.began
            message["headers"] = [*message.get("headers", []), *about(request.id, seconds, {})]
            front.note(request, message["status"], seconds)
        await send(message)

    return sending


def _build_pages(front: Front) -> Starlette:
    def index(request: Request) -> Response:  # in a thread: counting rows may ask another machine
        default = front.service().encoder
        current = [served for served in front.models if served.current]
        described = {
            "models": {served.name: served.service.encoder.manifest.model_id for served in current},
            "default": front.models.default,
            "dimension": default.manifest.dimension,
            "class_names": default.manifest.class_names,
            "preprocess": default.manifest.preprocess.to_json(),
            "provider": default.provider,
            "gallery_rows": count_of(gallery) if (gallery := front.service().gallery) else None,
            "served": [_described(served) for served in front.models],
            "endpoints": ENDPOINTS,
        }
        return _json(to_json(described))

    async def healthz(request: Request) -> Response:
        front.check_live()
        return _json(to_json({"status": "alive"}))

    async def readyz(request: Request) -> Response:
        return _json(to_json({"status": "ready", "model": front.service().encoder.manifest.model_id}))

    def metrics(request: Request) -> Response:  # likewise
        return Response(front.prometheus(), media_type=CONTENT_TYPE_LATEST)

    endpoints = {"/": index, "/models": index, "/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    routes = [Route(path, endpoint) for path, endpoint in endpoints.items()]
    return Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)


async def _refused(request: Request, error: RequestError) -> Response:
    headers = {name.decode(): value.decode() for name, value in retry_after(1)} if error.status == 503 else {}
    return _error(error.status, error.reason, headers)


async def _not_there(request: Request, error: HTTPException) -> Response:
    there = ", ".join(ENDPOINTS)
    reason = f"{error.detail}: {request.method} {request.url.path[:80]}; there is {there}"
    return _error(error.status_code, reason, dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    return _error(500, internal_error(error, request.scope["akin.request"]), {})


EXCEPTION_HANDLERS: dict[Any, Any] = {RequestError: _refused, HTTPException: _not_there, Exception: _broken}


def _described(served: Served) -> dict[str, Any]:
    manifest, encoder = served.service.encoder.manifest, served.service.encoder
    return {
        "name": served.name,
        "version": served.version,
        "current": served.current,
        "model": manifest.model_id,
        "dimension": manifest.dimension,
        "size": manifest.preprocess.size,
        "classes": len(manifest.class_names),
        "class_names": manifest.class_names,
        "precision": encoder.artifact.precision,
        "provider": encoder.provider,
        "gallery": served.service.gallery is not None,
        "thumbnails": served.service.thumbnails is not None,
    }


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _error(status: int, reason: str, headers: dict[str, str]) -> Response:
    return Response(error_json(status, reason), status, headers, media_type="application/json")
