"""`POST /predictions/{name}` as /docs shows it: served in front of FastAPI, so described by hand."""

from typing import Any

from handlers.service import FIELDS, MAX_K

_K = {"type": "integer", "minimum": 0, "maximum": MAX_K, "default": 0}
_FIELDS = {"type": "string", "example": "embedding,label"}
_BINARY = {"type": "string", "format": "binary"}
_IMAGES = {"type": "array", "items": _BINARY}
_ERRORS = {
    "400": "damaged image, or an option out of range",
    "404": "no such model",
    "409": "k > 0 on a server without a gallery",
    "413": "body or picture too large",
    "415": "unsupported format",
    "503": "loading, or the queue is full; see Retry-After",
}


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "schema": schema, "description": description}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_NEIGHBOR = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "score": {"type": "number", "description": "cosine similarity"},
        "label": {"type": "string", "nullable": True},
        "metadata": {"type": "object"},
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "embedding": _NUMBERS,
        "logits": _NUMBERS,
        "label": {"type": "string"},
        "confidence": {"type": "number"},
        "neighbors": {"type": "array", "items": _NEIGHBOR},
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
_ERROR = {"type": "object", "properties": {"status": {"type": "integer"}, "error": {"type": "string"}}}

PREDICTIONS: dict[str, Any] = {
    "/predictions/{name}": {
        "post": {
            "summary": "Embedding, logits, label and neighbours of an image",
            "description": "One image as the body, or one or many as parts of a form. Several images answer "
            "a list in their order, each with a status of its own. Options may also stand in the form's "
            "parts `k` and `fields`; the query goes before the form, the form before the headers.",
            "parameters": [
                _parameter("name", "path", {"type": "string"}, "the model's name") | {"required": True},
                _parameter("k", "query", _K, "how many neighbours; 0 for none"),
                _parameter("fields", "query", _FIELDS, f"which of {', '.join(FIELDS)}; all when left out"),
                _parameter("akin-k", "header", _K, "k, for clients that cannot set the query"),
                _parameter("akin-fields", "header", _FIELDS, "fields, likewise"),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "properties": {"image": _IMAGES, "k": _K, "fields": _FIELDS},
                        }
                    },
                    "image/*": {"schema": _BINARY},
                    "application/octet-stream": {"schema": _BINARY},
                },
            },
            "responses": {
                "200": _json("The answer, or a list of them", _ANSWER),
                **{status: _json(reason, _ERROR) for status, reason in _ERRORS.items()},
            },
        }
    }
}
