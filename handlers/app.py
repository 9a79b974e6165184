"""The ASGI application: what embeds images straight to its route, everything else through FastAPI."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from handlers import index_routes, openai
from handlers.bulk import bulk
from handlers.exchange import Front, Receive, Route, Scope, Send, exchange, internal_error
from handlers.index_routes import BULK
from handlers.metrics import count_of
from handlers.openapi import PATHS
from handlers.openapi_index import INDEX_PATHS
from handlers.predictions import PREDICTIONS, PREFIX
from handlers.service import RequestError, error_json, to_json

Stream = Callable[[Front, Scope, Receive, Send], Awaitable[None]]
ENDPOINTS = {
    "POST /predictions/NAME": "an image to its embedding, logits, label and neighbours",
    "POST /v1/embeddings": "images to embeddings, as OpenAI's clients ask for them",
    "GET /v1/models": "the model, as OpenAI's clients ask for it",
    "PUT, GET, DELETE /index/ID": "a row of the index: an image or a vector under an id",
    "POST /index/search": "neighbours of an image, a vector or a row, filtered",
    "POST /index/bulk": "a stream of rows, as NDJSON or tar",
    "GET /index": "what the index holds and how it is searched",
    "GET /thumbnails/ID": "a small picture of a row, where they are kept",
    "GET /healthz": "the process is alive",
    "GET /readyz": "the golden vectors have passed: predictions are answered",
    "GET /metrics": "latency by stage, requests, queue depth, for Prometheus",
    "GET /docs": "this API, to read and try",
}


class _Documented(FastAPI):
    """FastAPI whose schema also shows the paths that are served in front of it."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["paths"] |= PATHS | INDEX_PATHS
        bearer = {"bearer": {"type": "http", "scheme": "bearer"}}
        schema.setdefault("components", {})["securitySchemes"] = bearer
        return schema


def build_app(front: Front) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """What uvicorn runs."""
    pages = _build_pages(front)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        route = _route_for(scope["path"], scope["method"]) if scope["type"] == "http" else None
        if route is None:
            await pages(scope, receive, send)
        elif isinstance(route, Route):
            await exchange(front, route, scope, receive, send)
        else:
            await route(front, scope, receive, send)

    return app


def _route_for(path: str, method: str) -> Route | Stream | None:
    """The plain route that a path has, if it has one."""
    if path.startswith(PREFIX):
        return PREDICTIONS
    if path == BULK and method == "POST":
        return bulk
    return openai.route_for(path) or index_routes.route_for(path, method)


def _build_pages(front: Front) -> FastAPI:
    pages = _Documented(title="akin", description="Embeddings of images, and their nearest neighbours.")

    @pages.get("/", summary="What is served here")
    def index() -> Response:  # in a thread: counting rows may ask another machine
        service = front.ready_service()
        manifest, gallery = service.encoder.manifest, service.gallery
        return _json(
            to_json(
                {
                    "models": {front.name: manifest.model_id},
                    "dimension": manifest.dimension,
                    "class_names": manifest.class_names,
                    "preprocess": manifest.preprocess.to_json(),
                    "provider": service.encoder.provider,
                    "gallery_rows": count_of(gallery) if gallery else None,
                    "endpoints": ENDPOINTS,
                }
            ),
        )

    @pages.get("/healthz", summary=ENDPOINTS["GET /healthz"])
    async def healthz() -> Response:
        return _json(to_json({"status": "alive"}))

    @pages.get("/readyz", summary=ENDPOINTS["GET /readyz"])
    async def readyz() -> Response:
        return _json(to_json({"status": "ready", "model": front.ready_service().encoder.manifest.model_id}))

    @pages.get("/metrics", summary=ENDPOINTS["GET /metrics"])
    def metrics() -> Response:  # likewise
        return Response(front.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @pages.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _error(error.status, error.reason, {"retry-after": "1"} if error.status == 503 else {})

    @pages.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> Response:
        there = ", ".join(ENDPOINTS)
        reason = f"{error.detail}: {request.method} {request.url.path[:80]}; there is {there}"
        return _error(error.status_code, reason, dict(error.headers or {}))

    @pages.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return _error(500, internal_error(error), {})

    return pages


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _error(status: int, reason: str, headers: dict[str, str]) -> Response:
    return Response(error_json(status, reason), status, headers, media_type="application/json")
