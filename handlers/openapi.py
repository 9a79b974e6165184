"""Predictions and OpenAI's endpoints as /docs shows them: served in front of FastAPI, so described by hand."""

from typing import Any

from handlers.openai import EMBEDDINGS_PATH, MAX_INPUTS, MODELS_PATH
from handlers.service import FIELDS, MAX_K

_K = {"type": "integer", "minimum": 0, "maximum": MAX_K, "default": 0}
_FIELDS = {"type": "string", "example": "embedding,label"}
BINARY = {"type": "string", "format": "binary"}
_IMAGES = {"type": "array", "items": BINARY}
_ERRORS = {
    "400": "damaged image, or an option out of range",
    "404": "no such model",
    "409": "k > 0 on a server without a gallery",
    "413": "body or picture too large",
    "415": "unsupported format",
    "503": "loading, or the queue is full; see Retry-After",
}


def parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    """A parameter of an operation."""
    return {"name": name, "in": where, "schema": schema, "description": description}


def json_answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A response that is JSON."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


NUMBERS = {"type": "array", "items": {"type": "number"}}
NEIGHBOR = {
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
        "embedding": NUMBERS,
        "logits": NUMBERS,
        "label": {"type": "string"},
        "confidence": {"type": "number"},
        "neighbors": {"type": "array", "items": NEIGHBOR},
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
ERROR = {"type": "object", "properties": {"status": {"type": "integer"}, "error": {"type": "string"}}}

_OPENAI_ERROR = {
    "type": "object",
    "properties": {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": "string", "nullable": True},
        "code": {"type": "string", "nullable": True},
    },
}
_REFUSED = {"type": "object", "properties": {"error": _OPENAI_ERROR}}
_OPENAI_ERRORS = {"default": json_answer("OpenAI's error object; statuses as those of predictions", _REFUSED)}
_IMAGE = {"type": "string", "example": "data:image/jpeg;base64,..."}
_EMBEDDINGS_REQUEST = {
    "type": "object",
    "required": ["input", "model"],
    "properties": {
        "input": {"oneOf": [_IMAGE, {"type": "array", "items": _IMAGE, "minItems": 1, "maxItems": MAX_INPUTS}]},
        "model": {"type": "string", "example": "encoder"},
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "description": "the model's own, or left out"},
        "user": {"type": "string", "description": "ignored"},
    },
}
_EMBEDDING = {
    "type": "object",
    "properties": {
        "object": {"type": "string"},
        "index": {"type": "integer"},
        "embedding": {
            "oneOf": [NUMBERS, {"type": "string", "description": "base64 of little-endian float32"}],
            "nullable": True,
        },
        "error": _OPENAI_ERROR | {"description": "only where embedding is null"},
    },
}
_EMBEDDINGS = {
    "type": "object",
    "properties": {
        "object": {"type": "string"},
        "data": {"type": "array", "items": _EMBEDDING},
        "model": {"type": "string"},
        "usage": {"type": "object", "description": "zeros: images have no tokens"},
    },
}
_MODEL = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_MODELS = {"type": "object", "properties": {"object": {"type": "string"}, "data": {"type": "array", "items": _MODEL}}}

PATHS: dict[str, Any] = {
    "/predictions/{name}": {
        "post": {
            "summary": "Embedding, logits, label and neighbours of an image",
            "description": "One image as the body, or one or many as parts of a form. Several images answer "
            "a list in their order, each with a status of its own. Options may also stand in the form's "
            "parts `k` and `fields`; the query goes before the form, the form before the headers.",
            "parameters": [
                parameter("name", "path", {"type": "string"}, "the model's name") | {"required": True},
                parameter("k", "query", _K, "how many neighbours; 0 for none"),
                parameter("fields", "query", _FIELDS, f"which of {', '.join(FIELDS)}; all when left out"),
                parameter("akin-k", "header", _K, "k, for clients that cannot set the query"),
                parameter("akin-fields", "header", _FIELDS, "fields, likewise"),
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
                    "image/*": {"schema": BINARY},
                    "application/octet-stream": {"schema": BINARY},
                },
            },
            "responses": {
                "200": json_answer("The answer, or a list of them", _ANSWER),
                **{status: json_answer(reason, ERROR) for status, reason in _ERRORS.items()},
            },
        }
    },
    EMBEDDINGS_PATH: {
        "post": {
            "summary": "Embeddings of images, as OpenAI's clients ask for them",
            "description": "Images as data URIs or bare base64. Where some of several images are bad, their entries "
            "have a null `embedding` and an `error`; where all are, the request fails.",
            "requestBody": {"required": True, "content": {"application/json": {"schema": _EMBEDDINGS_REQUEST}}},
            "responses": {"200": json_answer("An entry for each input, in order", _EMBEDDINGS), **_OPENAI_ERRORS},
        }
    },
    MODELS_PATH: {
        "get": {
            "summary": "The model, as OpenAI's clients ask for it",
            "responses": {"200": json_answer("A list of one", _MODELS), **_OPENAI_ERRORS},
        }
    },
    f"{MODELS_PATH}/{{name}}": {
        "get": {
            "summary": "The model by its name or id",
            "parameters": [parameter("name", "path", {"type": "string"}, "name or id") | {"required": True}],
            "responses": {"200": json_answer("The model", _MODEL), **_OPENAI_ERRORS},
        }
    },
}
