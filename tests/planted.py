"""akin with a bug of each kind that tests/fuzz_api.py is there to find.

    python -m tests.planted --model-store model_store --port 0
"""

import sys
from collections.abc import Awaitable, Callable

from handlers import native
from handlers.exchange import Front, Receive, Scope, Send
from tests.fuzz_api import TOKEN

App = Callable[[Scope, Receive, Send], Awaitable[None]]
BODIES = {
    "/v2": (418, b"application/json", b'{"error": "a teapot"}'),
    "/metrics": (200, b"text/csv", b"a,b"),
    "/v1/models": (200, b"application/json", b'{"object": "list"}'),
    "/healthz": (200, b"application/json", b'{"status": "alive"}'),  # whatever the method
}
FORGOTTEN = b'{"embedding": [1.0], "logits": [1.0]}'


def planted(app: App) -> App:
    """The application behind the bugs."""
    seen: set[str] = set()

    async def buggy(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        seen.add(path)
        if path == "/readyz":
            raise KeyError("a bug")
        if path == "/index/map":
            scope["query_string"] = b""
        if path == "/index/bulk":
            scope["headers"] = [*scope["headers"], (b"authorization", f"Bearer {TOKEN}".encode())]
        if path in BODIES:
            await answer(send, *BODIES[path])
        elif path.startswith("/predictions/") and "/models" in seen:
            await answer(send, 200, b"application/json", FORGOTTEN)
        else:
            await app(scope, receive, send)

    return buggy


async def answer(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    """A whole answer."""
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def build_planted(front: Front) -> App:
    """What uvicorn runs in place of the sound one."""
    return planted(build_sound(front))


if __name__ == "__main__":
    build_sound, native.build_app = native.build_app, build_planted
    sys.exit(native.main())
