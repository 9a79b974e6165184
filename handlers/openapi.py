"""Predictions and OpenAI's endpoints as /docs shows them."""

from handlers.openai import EMBEDDINGS_PATH, MAX_INPUTS, MODELS_PATH
from handlers.openapi_schemas import (
    BASE64,
    BINARY,
    ERROR,
    IMAGE,
    MAYBE_TEXT,
    MODEL_NAME,
    NEIGHBOR,
    NUMBERS,
    TEXT,
    TIMING_MS,
    WHOLE,
    Schema,
    array,
    json_answer,
    loose,
    parameter,
    responses,
    strict,
)
from handlers.openapi_server import SERVER_PATHS
from handlers.service import ENCODINGS, FIELDS, MAX_K

_VERSION = parameter("version", "path", {"type": "string", "minLength": 1}, "one that GET /models lists")
_K = {"type": "integer", "minimum": 0, "maximum": MAX_K, "default": 0}
_FIELDS = {
    "type": "string",
    "examples": ["embedding,label"],
    "pattern": f"^({'|'.join(FIELDS)})(,({'|'.join(FIELDS)}))*$",
}
_ENCODING = {"type": "string", "enum": list(ENCODINGS), "default": "float"}
_VECTOR = {"oneOf": [NUMBERS, BASE64]}
_ANSWERED: dict[str, Schema] = {
    "model": TEXT,
    "embedding": _VECTOR,
    "logits": _VECTOR,
    "label": TEXT,
    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    "neighbors": array(NEIGHBOR),
    "timing_ms": TIMING_MS,
}
_ONE_OF_MANY = {"anyOf": [loose({"status": {"const": 200}, **_ANSWERED}, required=["status"]), ERROR]}
_ANSWER = {"oneOf": [loose(_ANSWERED), array(_ONE_OF_MANY)]}
_FLOATS = BINARY | {"description": "the embedding alone, or (N, D) of several images"}


def _predict(operation: str, parameters: list[Schema]) -> Schema:
    return {
        "operationId": operation,
        "summary": "Embedding, logits, label and neighbours of an image",
        "description": "One image as the body, or one or many as parts of a form. Several images answer "
        "a list in their order, each with a status of its own. Options may also stand in the form's "
        "parts `k`, `fields` and `encoding`; the query goes before the form, the form before the headers. "
        "`Accept: application/octet-stream` or `application/x-npy` gives the embedding alone, with the label in "
        "the headers `akin-label` and `akin-confidence`.",
        "parameters": [
            *parameters,
            parameter("k", "query", _K, "how many neighbours; 0 for none"),
            parameter("fields", "query", _FIELDS, f"which of {', '.join(FIELDS)}; all when left out"),
            parameter("encoding", "query", _ENCODING, "of embedding and logits"),
            parameter("akin-k", "header", _K, "k, for clients that cannot set the query"),
            parameter("akin-fields", "header", _FIELDS, "fields, likewise"),
            parameter("akin-encoding", "header", _ENCODING, "encoding, likewise"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": BINARY},
                "application/octet-stream": {"schema": BINARY},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "minProperties": 1,
                        "properties": {"image": array(BINARY), "k": _K, "fields": _FIELDS, "encoding": _ENCODING},
                        "additionalProperties": BINARY | {"description": "an image, whatever its name"},
                    }
                },
            },
        },
        "responses": responses(
            {
                "description": "The answer, or a list of them",
                "content": {
                    "application/json": {"schema": _ANSWER},
                    "application/octet-stream": {"schema": _FLOATS},
                    "application/x-npy": {"schema": _FLOATS},
                },
            },
            *("400", "404", "409", "413", "415", "503"),
        ),
    }


_OPENAI_ERROR = strict({"message": TEXT, "type": TEXT, "param": MAYBE_TEXT, "code": MAYBE_TEXT})
_REFUSED = strict({"error": _OPENAI_ERROR})
_EMBEDDINGS_REQUEST = strict(
    {
        "input": {"oneOf": [IMAGE, array(IMAGE, minItems=1, maxItems=MAX_INPUTS)]},
        "model": {"type": "string", "minLength": 1, "examples": ["encoder"]},
        "encoding_format": _ENCODING | {"type": ["string", "null"], "enum": [*ENCODINGS, None]},
        "dimensions": {"type": ["integer", "null"], "description": "the model's own, or left out"},
        "user": {"description": "ignored"},
    },
    optional=("encoding_format", "dimensions", "user"),
)
_EMBEDDINGS = strict(
    {
        "object": {"const": "list"},
        "data": array(
            strict(
                {
                    "object": {"const": "embedding"},
                    "index": WHOLE,
                    "embedding": {"oneOf": [NUMBERS, BASE64, {"type": "null"}]},
                    "error": _OPENAI_ERROR | {"description": "only where embedding is null"},
                },
                optional=("error",),
            )
        ),
        "model": TEXT,
        "usage": strict({"prompt_tokens": {"const": 0}, "total_tokens": {"const": 0}}),
    }
)
_MODEL = strict({"id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT})
_MODELS = strict({"object": {"const": "list"}, "data": array(_MODEL)})

PATHS: dict[str, Schema] = {
    "/predictions/{name}": {
        "post": _predict("predict", [MODEL_NAME]),
        "put": _predict("predict_upload", [MODEL_NAME]),
    },
    "/predictions/{name}/{version}": {
        "post": _predict("predict_version", [MODEL_NAME, _VERSION]),
        "put": _predict("predict_version_upload", [MODEL_NAME, _VERSION]),
    },
    EMBEDDINGS_PATH: {
        "post": {
            "operationId": "embeddings",
            "summary": "Embeddings of images, as OpenAI's clients ask for them",
            "description": "Images as data URIs or bare base64. Where some of several images are bad, their entries "
            "have a null `embedding` and an `error`; where all are, the request fails.",
            "requestBody": {"required": True, "content": {"application/json": {"schema": _EMBEDDINGS_REQUEST}}},
            "responses": responses(
                json_answer("An entry for each input, in order", _EMBEDDINGS),
                *("400", "404", "413", "415", "503"),
                error=_REFUSED,
            ),
        }
    },
    MODELS_PATH: {
        "get": {
            "operationId": "models",
            "summary": "The models, as OpenAI's clients ask for them",
            "responses": responses(json_answer("All that are served", _MODELS), "503", error=_REFUSED),
        }
    },
    f"{MODELS_PATH}/{{name}}": {
        "get": {
            "operationId": "model",
            "summary": "A model by its name or id",
            "parameters": [parameter("name", "path", {"type": "string", "minLength": 1}, "name or id")],
            "responses": responses(json_answer("The model", _MODEL), "404", "503", error=_REFUSED),
        }
    },
    **SERVER_PATHS,
}
