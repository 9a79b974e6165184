"""The Open Inference Protocol's routes as /docs shows them."""

from handlers.oip import ENCODED, INPUT, OUTPUTS, PIXELS
from handlers.oip_rest import INDEX, LIVE, READY, SERVER
from handlers.openai import MAX_INPUTS
from handlers.openapi_schemas import (
    BINARY,
    MODEL_NAME,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    Schema,
    array,
    json_answer,
    parameter,
    responses,
    strict,
)
from handlers.service import MAX_K

_ERROR = strict({"error": TEXT})
_VERSION = parameter("version", "path", {"type": "string", "minLength": 1}, "one that GET /v2/models/NAME lists")
_JSON_LENGTH = parameter(
    "Inference-Header-Content-Length", "header", WHOLE, "bytes of JSON, where binary tensors follow it"
)
_OUTPUT_NAME: Schema = {"type": "string", "enum": list(OUTPUTS)}
_DATATYPE: Schema = {"type": "string", "enum": ["FP32", "BYTES"]}

_METADATA = strict(
    {
        "name": TEXT,
        "versions": array(TEXT),
        "platform": TEXT,
        "inputs": array(strict({"name": {"const": INPUT}, "datatype": TEXT, "shape": array({"type": "integer"})})),
        "outputs": array(strict({"name": _OUTPUT_NAME, "datatype": _DATATYPE, "shape": array({"type": "integer"})})),
    }
)
_REPOSITORY = array(strict({"name": TEXT, "version": TEXT, "state": {"const": "READY"}, "reason": TEXT}))


def _parameters(known: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": known}


_INPUT = strict(
    {
        "name": {"const": INPUT},
        "datatype": {"type": "string", "enum": [PIXELS, ENCODED]},
        "shape": array(
            WHOLE,
            minItems=1,
            maxItems=4,
            description="[N, size, size, 3] of UINT8, [N] or [N, 1] of BYTES",
            examples=[[1]],
        ),
        "data": {
            "type": "array",
            "description": "pixels from 0 to 255, flat or nested; or image files in base64",
            "examples": [["iVBORw0KGgo..."]],
        },
        "parameters": _parameters({"binary_data_size": WHOLE}),
    },
    optional=("data", "parameters"),
)
_REQUEST = strict(
    {
        "id": TEXT,
        "inputs": array(_INPUT, minItems=1, maxItems=1),
        "outputs": array(
            strict(
                {"name": _OUTPUT_NAME, "parameters": _parameters({"binary_data": TRUTH})}, optional=("parameters",)
            ),
            description="those wanted; all when left out",
            uniqueItems=True,
        ),
        "parameters": strict(
            {
                "k": {"type": "integer", "minimum": 0, "maximum": MAX_K, "default": 0},
                "binary_data_output": TRUTH,
                "priority": {"description": "ignored"},
                "timeout": {"description": "ignored"},
            },
            optional=("k", "binary_data_output", "priority", "timeout"),
        ),
    },
    optional=("id", "outputs", "parameters"),
)
_OUTPUT = {
    "name": _OUTPUT_NAME,
    "datatype": _DATATYPE,
    "shape": array(WHOLE),
    "data": {"anyOf": [array(NUMBER), array(TEXT)]},
    "parameters": strict({"binary_data_size": WHOLE}),
}
_ANSWER = strict(
    {
        "model_name": TEXT,
        "model_version": TEXT,
        "id": TEXT,
        "outputs": array(strict(_OUTPUT, optional=("data", "parameters"))),
    },
    optional=("id",),
)


def _get(operation: str, summary: str, answer: Schema, parameters: list[Schema], *errors: str) -> Schema:
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": parameters,
        "responses": responses(json_answer(summary, answer), *errors, error=_ERROR),
    }


def _health(operation: str, summary: str, key: str) -> Schema:
    """Answered without a token, also where reads are protected."""
    get = _get(operation, summary, strict({key: {"const": True}}), [], "503")
    del get["responses"]["401"]
    return {"get": get}


def _infer(operation: str, parameters: list[Schema]) -> Schema:
    answer = json_answer("The outputs, in the order asked for", _ANSWER)
    answer["content"]["application/octet-stream"] = {"schema": BINARY}
    return {
        "operationId": operation,
        "summary": "Images to embeddings, logits, labels and neighbours",
        "description": f"Up to {MAX_INPUTS} images as pixels (UINT8) or as files (BYTES; in JSON as base64). A bad "
        "one fails the request. Tensors with `binary_data_size` lie behind the JSON, as Triton has them.",
        "parameters": [*parameters, _JSON_LENGTH],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _REQUEST},
                "application/octet-stream": {"schema": BINARY},
            },
        },
        "responses": responses(answer, "400", "404", "409", "413", "415", "503", error=_ERROR),
    }


_MODEL_READY = strict({"name": TEXT, "ready": {"const": True}})
_PLAIN = f"{SERVER}/models/{{name}}"
_VERSIONED = f"{_PLAIN}/versions/{{version}}"
_ONE: list[Schema] = [MODEL_NAME, _VERSION]

OIP_PATHS: dict[str, Schema] = {
    SERVER: {
        "get": _get(
            "oip_server",
            "Name and version of the server",
            strict({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
            [],
        )
    },
    LIVE: _health("oip_live", "The process is alive", "live"),
    READY: _health("oip_ready", "The golden vectors have passed: inferences are answered", "ready"),
    INDEX: {"post": _get("oip_repository", "Every version of every model", _REPOSITORY, [])},
    _PLAIN: {"get": _get("oip_model", "A model's tensors", _METADATA, [MODEL_NAME], "404", "503")},
    _VERSIONED: {"get": _get("oip_version", "A version's tensors", _METADATA, _ONE, "404", "503")},
    f"{_PLAIN}/ready": {"get": _get("oip_model_ready", "It is served", _MODEL_READY, [MODEL_NAME], "404", "503")},
    f"{_VERSIONED}/ready": {"get": _get("oip_version_ready", "It is served", _MODEL_READY, _ONE, "404", "503")},
    f"{_PLAIN}/infer": {"post": _infer("oip_infer", [MODEL_NAME])},
    f"{_VERSIONED}/infer": {"post": _infer("oip_infer_version", _ONE)},
}
