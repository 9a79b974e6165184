"""The routes about the server itself as /docs shows them."""

from handlers.openapi_schemas import (
    TEXT,
    TRUTH,
    WHOLE,
    Schema,
    array,
    json_answer,
    responses,
    strict,
)

_SERVED = strict(
    {
        "name": TEXT,
        "version": TEXT,
        "current": TRUTH,
        "model": TEXT,
        "dimension": WHOLE,
        "size": WHOLE | {"description": "pixels a side of the square that the encoder sees"},
        "classes": WHOLE,
        "class_names": array(TEXT),
        "precision": TEXT,
        "provider": TEXT,
        "gallery": TRUTH,
        "thumbnails": TRUTH,
    }
)
_MODELS = strict(
    {
        "models": {"type": "object", "additionalProperties": TEXT, "description": "ids by name"},
        "default": TEXT | {"description": "the name that answers where none is given"},
        "dimension": WHOLE,
        "class_names": array(TEXT),
        "preprocess": {"type": "object", "description": "what is done to an image; see images/spec.py"},
        "provider": TEXT,
        "gallery_rows": {"type": ["integer", "null"]},
        "served": array(_SERVED),
        "endpoints": {"type": "object", "additionalProperties": TEXT},
    }
)


def _read(operation: str, summary: str, answer: Schema, *errors: str) -> Schema:
    return {"get": {"operationId": operation, "summary": summary, "responses": responses(answer, *errors)}}


def _open(operation: str, summary: str, answer: Schema) -> Schema:
    """Answered without a token, also where reads are protected."""
    read = _read(operation, summary, answer, "503")
    del read["get"]["responses"]["401"]
    return read


_HOME = json_answer("What is served, by name and version", _MODELS)
_PAGE = {"text/html": {"schema": TEXT}}

SERVER_PATHS: dict[str, Schema] = {
    "/": _read(
        "home",
        "A page to try all this for those who accept text/html, what is served for others",
        _HOME | {"content": _HOME["content"] | _PAGE},
        "503",
    ),
    "/models": _read("served", "What is served: names, versions, sizes, classes", _HOME, "503"),
    "/healthz": _open(
        "healthz", "The process is alive", json_answer("Alive", strict({"status": {"const": "alive"}}))
    ),
    "/readyz": _open(
        "readyz",
        "The golden vectors have passed: predictions are answered",
        json_answer("Ready", strict({"status": {"const": "ready"}, "model": TEXT})),
    ),
    "/metrics": _read(
        "metrics",
        "Latency by stage, requests, queue depth, for Prometheus",
        {"description": "Prometheus's text format", "content": {"text/plain": {"schema": TEXT}}},
    ),
}
