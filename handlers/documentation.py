"""/docs and /openapi.json: the API to read and to try, in Swagger UI, with nothing from elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from handlers.exchange import Receive, Scope, Send
from handlers.oip import server_metadata
from handlers.openapi import PATHS
from handlers.openapi_index import INDEX_PATHS
from handlers.openapi_oip import OIP_PATHS

PAGE, SCHEMA, FILES = "/docs", "/openapi.json", "/static-offline-docs/"


class Documentation:
    """An ASGI application, made when the first reader comes."""

    def __init__(self, exception_handlers: dict[Any, Any]) -> None:
        """exception_handlers: Starlette's, from a class or a status to what answers it."""
        self._exception_handlers = exception_handlers
        self._app: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None

    @staticmethod
    def has(path: str) -> bool:
        """Whether it answers there."""
        return path in (PAGE, SCHEMA) or path.startswith(FILES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            await asyncio.to_thread(self._make)
        assert self._app is not None
        await self._app(scope, receive, send)

    def _make(self) -> None:
        from fastapi_offline import FastAPIOffline  # here alone: FastAPI takes longer to import than a model to load

        app = FastAPIOffline(
            docs_url=PAGE,
            redoc_url=None,
            openapi_url=SCHEMA,
            static_url=FILES.removesuffix("/"),
            title="akin",
            exception_handlers=self._exception_handlers,
        )
        app.openapi = schema  # type: ignore[method-assign]
        self._app = app


@cache
def schema() -> dict[str, Any]:
    """The whole API as OpenAPI describes it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "akin",
            "description": "Embeddings of images, and their nearest neighbours.",
            "version": server_metadata()["version"],
        },
        "paths": PATHS | INDEX_PATHS | OIP_PATHS,
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }
