"""What stands around a body: the id in the path, the query, and whether the body is JSON or an image."""

from urllib.parse import parse_qsl, unquote_to_bytes

from handlers.about import Headers
from handlers.exchange import Scope, media_type
from handlers.predictions import RAW_TYPES
from handlers.service import RequestError


def id_of(scope: Scope, prefix: str) -> str:
    """The rest of the path, percent-decoded; not from scope["path"], where what is no UTF-8 was replaced."""
    try:
        id = unquote_to_bytes(scope["raw_path"]).decode().removeprefix(prefix)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the id in the path is not valid UTF-8 ({error.reason}); encode it so") from error
    if not id:
        raise RequestError(404, f"the path names no id; write {prefix}ID")
    return id


def query_of(scope: Scope) -> dict[str, str]:
    """The query by name; of a name given twice the later value."""
    try:
        return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the query is not valid UTF-8 ({error.reason}); encode it so") from error


def is_json(headers: Headers, body: bytes) -> bool:
    """Whether the body is JSON rather than an image; raises `RequestError` where its content type says neither.

    `curl -d` calls JSON a form and `curl -T` calls nothing anything; no image begins with a brace.
    """
    kind = media_type(headers)
    if kind == "application/json":
        return True
    if kind in RAW_TYPES:
        return body.lstrip()[:1] == b"{"
    if kind.startswith("image/"):
        return False
    raise RequestError(
        415,
        f"content type {kind[:40]!r} is not taken; send JSON as application/json or an image's bytes as image/* or "
        "application/octet-stream",
    )
