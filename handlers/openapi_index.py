"""The index's routes as /docs shows them, those of the default model and those of one by name."""

from handlers.bulk import BATCH_ROWS, FRAMINGS
from handlers.index_routes import BULK, INDEX, SEARCH, THUMBNAILS
from handlers.openapi_schemas import (
    BINARY,
    IMAGE,
    MAYBE_TEXT,
    METADATA,
    MODEL_NAME,
    NEIGHBOR,
    NUMBER,
    NUMBERS,
    TEXT,
    TIMING_MS,
    TRUTH,
    WHOLE,
    Schema,
    array,
    json_answer,
    loose,
    parameter,
    responses,
    strict,
)
from handlers.search import DEFAULT_K, MAX_QUERIES
from handlers.service import MAX_K
from index.filters import BOUNDS, MAX_CONDITIONS, MAX_VALUES
from index.projection import MAX_POINTS

_SCALAR = {"type": ["string", "number", "boolean"]}
_FILTER: Schema = {
    "type": "object",
    "description": "conditions on label and metadata that must all hold: a value, a list of values, or a range of "
    "gt, gte, lt and lte",
    "maxProperties": MAX_CONDITIONS,
    "additionalProperties": {
        "anyOf": [
            _SCALAR,
            array(_SCALAR, minItems=1, maxItems=MAX_VALUES),
            loose({bound: {"type": ["string", "number"]} for bound in BOUNDS}, minProperties=1),
        ]
    },
    "examples": [{"label": ["cat", "dog"], "year": {"gte": 1990, "lt": 2000}}],
}
_K: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": DEFAULT_K}
_MIN_SCORE: Schema = {"type": ["number", "null"], "minimum": -1, "maximum": 1}
_BEARER: list[dict[str, list[str]]] = [{"bearer": []}]
_ID = parameter("id", "path", {"type": "string", "minLength": 1}, "may hold slashes")
_DESCRIBED: dict[str, Schema] = {"label": MAYBE_TEXT, "metadata": METADATA | {"type": ["object", "null"]}}
_VECTOR = array(NUMBER, description="as many numbers as the model's dimension", format="vector")
_ROW = {
    "oneOf": [
        strict({"vector": _VECTOR, **_DESCRIBED}, optional=_DESCRIBED),
        strict({"image": IMAGE, **_DESCRIBED}, optional=_DESCRIBED),
    ]
}
_PREDICTED = strict({"label": TEXT, "confidence": NUMBER})
_STORED = strict(
    {"id": TEXT, "model": TEXT, "label": MAYBE_TEXT, "predicted": _PREDICTED, "timing_ms": TIMING_MS},
    optional=("predicted", "timing_ms"),
    description="predicted: of an image, by a model with a probe",
)
_RECORD = strict({"id": TEXT, "label": MAYBE_TEXT, "metadata": METADATA, "vector": NUMBERS})
_REFINED: dict[str, Schema] = {
    "k": _K,
    "filter": {"anyOf": [_FILTER, {"type": "null"}]},
    "min_score": _MIN_SCORE,
}
_ASKED = {
    "oneOf": [
        strict({subject: schema, **_REFINED}, optional=_REFINED)
        for subject, schema in {
            "vector": _VECTOR,
            "vectors": array(_VECTOR, minItems=1, maxItems=MAX_QUERIES),
            "id": TEXT,
            "image": IMAGE,
        }.items()
    ]
}
_VOTE = strict({"label": TEXT, "share": {"type": "number", "minimum": 0, "maximum": 1}})
_FOUND = strict({"model": TEXT, "neighbors": array(NEIGHBOR), "vote": array(_VOTE), "timing_ms": TIMING_MS})
_STATS = strict(
    {
        "model": TEXT,
        "dimension": WHOLE,
        "rows": WHOLE,
        "delta": WHOLE | {"description": "rows searched exactly beside the accelerated ones"},
        "tombstones": WHOLE | {"description": "accelerated rows that are masked"},
        "factory": TEXT,
        "memory_bytes": {"type": ["integer", "null"]},
        "snapshot": {"type": ["object", "null"]},
        "rebuilding": TRUTH,
        "recall": {
            "anyOf": [{"type": "null"}, strict({"at": WHOLE, "value": NUMBER, "queries": WHOLE, "seconds": NUMBER})]
        },
    }
)
_COORDINATE = {"type": "number", "minimum": -1, "maximum": 1}
_POINT = strict({"id": TEXT, "label": MAYBE_TEXT, "x": _COORDINATE, "y": _COORDINATE})
_MAP = strict({"points": array(_POINT), "rows": WHOLE, "sampled": TRUTH})
_LINE = strict({"id": MAYBE_TEXT, "status": WHOLE, "error": TEXT}, optional=("error",))


def _json_or_image(schema: Schema) -> Schema:
    images = {kind: {"schema": BINARY} for kind in ("image/*", "application/octet-stream")}
    return {"required": True, "content": {"application/json": {"schema": schema}, **images}}


_PATHS: dict[str, Schema] = {
    INDEX: {
        "get": {
            "operationId": "stats",
            "summary": "What the index holds and how it is searched",
            "parameters": [
                parameter(
                    "recall", "query", {"type": "string", "enum": ["0", "1"]}, "1 measures it, which takes seconds"
                )
            ],
            "responses": responses(json_answer("Sizes, and the last measured recall", _STATS), "400", "409", "503"),
        }
    },
    f"{INDEX}/map": {
        "get": {
            "operationId": "map",
            "summary": "The index in two dimensions, where neighbours stay neighbours",
            "parameters": [
                parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MAX_POINTS}, "how many rows")
            ],
            "responses": responses(json_answer("A sample of the rows", _MAP), "400", "409", "503"),
        }
    },
    f"{INDEX}/{{id}}": {
        "put": {
            "operationId": "put_row",
            "summary": "Insert or replace a row",
            "description": "Answered when the row is durable; the next search finds it. Of an image, label and "
            "metadata stand in the query; of JSON, in the body.",
            "parameters": [
                _ID,
                parameter("label", "query", TEXT, "of an image"),
                parameter("metadata", "query", TEXT, "of an image: a JSON object"),
            ],
            "requestBody": _json_or_image(_ROW),
            "security": _BEARER,
            "responses": responses(
                json_answer("It is durable", _STORED), *("400", "403", "409", "413", "415", "503", "507")
            ),
        },
        "get": {
            "operationId": "get_row",
            "summary": "A row",
            "parameters": [_ID],
            "responses": responses(json_answer("The row", _RECORD), "400", "404", "409", "503"),
        },
        "delete": {
            "operationId": "delete_row",
            "summary": "Remove a row",
            "parameters": [_ID],
            "security": _BEARER,
            "responses": responses(
                json_answer("It is gone", strict({"id": TEXT, "removed": {"const": True}})),
                *("400", "403", "404", "409", "503", "507"),
            ),
        },
    },
    SEARCH: {
        "post": {
            "operationId": "search",
            "summary": "Neighbours of a vector, a row or an image",
            "description": "Of an image body, k, filter (as JSON) and min_score stand in the query; of JSON, in the "
            "body. A row is not among its own neighbours. `vectors` answers a list.",
            "parameters": [
                parameter("k", "query", _K, "how many neighbours"),
                parameter("filter", "query", TEXT, "a JSON object"),
                parameter("min_score", "query", _MIN_SCORE, "least cosine similarity"),
            ],
            "requestBody": _json_or_image(_ASKED),
            "responses": responses(
                json_answer("Best first, and how they vote", {"oneOf": [_FOUND, array(_FOUND)]}),
                *("400", "404", "409", "413", "415", "503"),
            ),
        }
    },
    BULK: {
        "post": {
            "operationId": "bulk",
            "summary": "A stream of rows of any length",
            "description": "NDJSON (each line a row with its `id`, or an `id` with `delete: true`) or a plain tar of "
            f"images, whose names are the ids. Rows are committed {BATCH_ROWS} at a time; a line each says what "
            "became of them, and says 200 only when its row is durable. What ends the stream early, such as a full "
            "disk, gets a last line whose id is null.",
            "requestBody": {"required": True, "content": {kind: {"schema": BINARY} for kind in FRAMINGS}},
            "security": _BEARER,
            "responses": responses(
                {"description": "Lines as they come", "content": {"application/x-ndjson": {"schema": _LINE}}},
                *("403", "409", "415", "503"),
            ),
        }
    },
    f"{THUMBNAILS}{{id}}": {
        "get": {
            "operationId": "thumbnail",
            "summary": "A small picture of a row, where they are kept",
            "parameters": [_ID],
            "responses": responses(
                {"description": "WebP", "content": {"image/webp": {"schema": BINARY}}}, "400", "404", "409", "503"
            ),
        }
    },
}


def _of_named_model(operation: Schema) -> Schema:
    """The same for a model by name, which may not be there."""
    missing = {"404": operation["responses"].get("404") or responses({}, "404")["404"]}
    return operation | {
        "operationId": f"{operation['operationId']}_of_model",
        "parameters": [MODEL_NAME, *operation.get("parameters", ())],
        "responses": operation["responses"] | missing,
    }


INDEX_PATHS: dict[str, Schema] = _PATHS | {
    f"/models/{{name}}{path}": {method: _of_named_model(operation) for method, operation in operations.items()}
    for path, operations in _PATHS.items()
}
