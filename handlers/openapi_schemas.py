"""What the descriptions of all routes are made of: JSON Schema as OpenAPI 3.1 has it, strict, so that
tests/fuzz_api.py can hold every answer against it.
"""

from collections.abc import Collection
from typing import Any

Schema = dict[str, Any]

REASONS = {
    "400": "something is wrong with the request; the reason names it, the limit and the way out",
    "401": "the token of the server is needed: for writes where it has one, for reads where they are protected",
    "403": "writes are not open here",
    "404": "no such model, row or picture",
    "409": "this model has no index here",
    "413": "body or picture too large",
    "415": "unsupported format",
    "503": "loading, or no room in the queue now; see Retry-After",
    "507": "the disk is full; what was there before is",
}
OTHER = (
    "what any request may come to: 400 not well-formed HTTP, 405 another method belongs here, 408 head or body came "
    "too slowly, 413 a body where none belongs, 414 the target too long, 415 an encoded body, 431 headers too large, "
    "500 the server's own fault, 503 too many connections"
)


def strict(properties: dict[str, Schema], optional: Collection[str] = (), **more: Any) -> Schema:
    """An object that has these properties, all but the optional ones always, and no others."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        **more,
    }


def loose(properties: dict[str, Schema], **more: Any) -> Schema:
    """An object that has any of these properties, and no others."""
    return strict(properties, properties, **more)


def array(items: Schema, **more: Any) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items, **more}


def parameter(name: str, where: str, schema: Schema, description: str) -> Schema:
    """A parameter of an operation."""
    required = {"required": True} if where == "path" else {}
    return {"name": name, "in": where, "schema": schema, "description": description, **required}


def json_answer(description: str, schema: Schema) -> Schema:
    """A response that is JSON."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def responses(answer: Schema, *errors: str, error: Schema | None = None) -> dict[str, Schema]:
    """The responses of an operation: its answer, and the refusals it knows, each as `error` or ERROR.

    401 is among them always: reads may be protected, and that is said before anything else is looked at. So is what
    can happen to any request, some of it before its route is known.
    """
    refused = {status: json_answer(REASONS[status], ERROR if error is None else error) for status in errors}
    other = json_answer(OTHER, ERROR if error is None else {"anyOf": [error, ERROR]})
    return {"200": answer, **refused, "401": json_answer(REASONS["401"], ERROR), "default": other}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
TRUTH: Schema = {"type": "boolean"}
NUMBERS = array(NUMBER)
BASE64: Schema = {"type": "string", "contentEncoding": "base64", "description": "base64 of little-endian float32"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
BINARY: Schema = {"type": "string", "format": "binary"}
TIMING_MS: Schema = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
METADATA: Schema = {"type": "object", "examples": [{"year": 1998}]}
IMAGE: Schema = {"type": "string", "format": "image", "examples": ["data:image/jpeg;base64,..."]}
MODEL_NAME = parameter("name", "path", {"type": "string", "minLength": 1}, "the model's name")
NEIGHBOR = strict(
    {"id": TEXT, "score": NUMBER | {"description": "cosine similarity"}, "label": MAYBE_TEXT, "metadata": METADATA}
)
ERROR = strict({"status": {"type": "integer", "minimum": 400, "maximum": 599}, "error": TEXT})
