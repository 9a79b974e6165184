"""The index's routes as /docs shows them."""

from typing import Any

from handlers.bulk import BATCH_ROWS, FRAMINGS
from handlers.index_routes import BULK, INDEX, SEARCH, THUMBNAILS
from handlers.openapi import BINARY, ERROR, NEIGHBOR, NUMBERS, json_answer, parameter
from handlers.search import DEFAULT_K, MAX_QUERIES
from handlers.service import MAX_K

_METADATA = {"type": "object", "example": {"year": 1998}}
_LABEL = {"type": "string", "nullable": True}
_IMAGE = {"type": "string", "example": "data:image/jpeg;base64,..."}
_FILTER = {
    "type": "object",
    "description": "conditions on label and metadata that must all hold: a value, a list of values, or a range of "
    "gt, gte, lt and lte",
    "example": {"label": ["cat", "dog"], "year": {"gte": 1990, "lt": 2000}},
}
_K = {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": DEFAULT_K}
_MIN_SCORE = {"type": "number", "minimum": -1, "maximum": 1}
_ERRORS = {
    "400": "something is wrong with the request; the reason names it, the limit and the way out",
    "401": "writes need the token of the server",
    "403": "writes are not open here",
    "404": "no such row",
    "409": "a server without an index",
    "413": "body or picture too large",
    "415": "unsupported format",
    "503": "the index or the queue has no room now; see Retry-After",
    "507": "the disk is full; what was there before is",
}
_BEARER: list[dict[str, list[str]]] = [{"bearer": []}]
_ID = parameter("id", "path", {"type": "string"}, "may hold slashes") | {"required": True}
_ROW = {
    "type": "object",
    "properties": {"vector": NUMBERS, "image": _IMAGE, "label": _LABEL, "metadata": _METADATA},
    "description": "vector or image",
}
_STORED = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "label": _LABEL,
        "predicted": {
            "type": "object",
            "properties": {"label": {"type": "string"}, "confidence": {"type": "number"}},
            "description": "of an image",
        },
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_RECORD = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "label": _LABEL, "metadata": _METADATA, "vector": NUMBERS},
}
_ASKED = {
    "type": "object",
    "description": "one of vector, vectors, id and image",
    "properties": {
        "vector": NUMBERS,
        "vectors": {"type": "array", "items": NUMBERS, "maxItems": MAX_QUERIES},
        "id": {"type": "string"},
        "image": _IMAGE,
        "k": _K,
        "filter": _FILTER,
        "min_score": _MIN_SCORE,
    },
}
_FOUND = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "neighbors": {"type": "array", "items": NEIGHBOR},
        "vote": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"label": {"type": "string"}, "share": {"type": "number"}},
            },
        },
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_STATS = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "dimension": {"type": "integer"},
        "rows": {"type": "integer"},
        "delta": {"type": "integer", "description": "rows searched exactly beside the accelerated ones"},
        "tombstones": {"type": "integer", "description": "accelerated rows that are masked"},
        "factory": {"type": "string"},
        "memory_bytes": {"type": "integer", "nullable": True},
        "snapshot": {"type": "object", "nullable": True},
        "rebuilding": {"type": "boolean"},
        "recall": {
            "type": "object",
            "nullable": True,
            "properties": {
                "at": {"type": "integer"},
                "value": {"type": "number"},
                "queries": {"type": "integer"},
                "seconds": {"type": "number"},
            },
        },
    },
}
_LINE = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "nullable": True},
        "status": {"type": "integer"},
        "error": {"type": "string"},
    },
}


def _responses(answer: dict[str, Any], *errors: str) -> dict[str, Any]:
    return {"200": answer, **{status: json_answer(_ERRORS[status], ERROR) for status in errors}}


def _json_or_image(schema: dict[str, Any]) -> dict[str, Any]:
    images = {kind: {"schema": BINARY} for kind in ("image/*", "application/octet-stream")}
    return {"required": True, "content": {"application/json": {"schema": schema}, **images}}


INDEX_PATHS: dict[str, Any] = {
    INDEX: {
        "get": {
            "summary": "What the index holds and how it is searched",
            "parameters": [
                parameter(
                    "recall", "query", {"type": "integer", "enum": [0, 1]}, "1 measures it, which takes seconds"
                )
            ],
            "responses": _responses(json_answer("Sizes, and the last measured recall", _STATS), "409", "503"),
        }
    },
    f"{INDEX}/{{id}}": {
        "put": {
            "summary": "Insert or replace a row",
            "description": "Answered when the row is durable; the next search finds it. Of an image, label and "
            "metadata stand in the query; of JSON, in the body.",
            "parameters": [
                _ID,
                parameter("label", "query", {"type": "string"}, "of an image"),
                parameter("metadata", "query", {"type": "string"}, "of an image: a JSON object"),
            ],
            "requestBody": _json_or_image(_ROW),
            "security": _BEARER,
            "responses": _responses(
                json_answer("It is durable", _STORED), *(status for status in _ERRORS if status != "404")
            ),
        },
        "get": {
            "summary": "A row",
            "parameters": [_ID],
            "responses": _responses(json_answer("The row", _RECORD), "404", "409", "503"),
        },
        "delete": {
            "summary": "Remove a row",
            "parameters": [_ID],
            "security": _BEARER,
            "responses": _responses(
                json_answer("It is gone", {"type": "object", "properties": {"removed": {"type": "boolean"}}}),
                "401",
                "403",
                "404",
                "409",
                "503",
                "507",
            ),
        },
    },
    SEARCH: {
        "post": {
            "summary": "Neighbours of a vector, a row or an image",
            "description": "Of an image body, k, filter (as JSON) and min_score stand in the query; of JSON, in the "
            "body. A row is not among its own neighbours. `vectors` answers a list.",
            "parameters": [
                parameter("k", "query", _K, "how many neighbours"),
                parameter("filter", "query", {"type": "string"}, "a JSON object"),
                parameter("min_score", "query", _MIN_SCORE, "least cosine similarity"),
            ],
            "requestBody": _json_or_image(_ASKED),
            "responses": _responses(
                json_answer("Best first, and how they vote", _FOUND), "400", "404", "409", "413", "415", "503"
            ),
        }
    },
    BULK: {
        "post": {
            "summary": "A stream of rows of any length",
            "description": "NDJSON (each line a row with its `id`, or an `id` with `delete: true`) or a plain tar of "
            f"images, whose names are the ids. Rows are committed {BATCH_ROWS} at a time; a line each says what "
            "became of them, and says 200 only when its row is durable. What ends the stream early, such as a full "
            "disk, gets a last line whose id is null.",
            "requestBody": {"required": True, "content": {kind: {"schema": BINARY} for kind in FRAMINGS}},
            "security": _BEARER,
            "responses": _responses(
                {"description": "Lines as they come", "content": {"application/x-ndjson": {"schema": _LINE}}},
                "401",
                "403",
                "409",
                "415",
                "503",
            ),
        }
    },
    f"{THUMBNAILS}{{id}}": {
        "get": {
            "summary": "A small picture of a row, where they are kept",
            "parameters": [_ID],
            "responses": _responses(
                {"description": "WebP", "content": {"image/webp": {"schema": BINARY}}}, "404", "409", "503"
            ),
        }
    },
}
