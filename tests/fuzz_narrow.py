"""What the schema of a server in tests/fuzz_api.py says, beyond the schema of any: its names, versions and sizes.

Without it hardly any request would be good, and no answer to a good one would be held against the schema.
"""

import os
from collections.abc import Callable
from typing import Any

DIMENSION = int(os.environ["AKIN_FUZZ_DIMENSION"])
SIZE = int(os.environ["AKIN_FUZZ_SIZE"])
VERSION = os.environ["AKIN_FUZZ_VERSION"]
PICTURED = os.environ["AKIN_FUZZ_PICTURED"]  # the id of a row that has a thumbnail
IDS = ("zero", "cats/1.jpg", "ü ?#%41", "..")
JSON_BYTES = 300  # of an inference's body, before its tensors
NDJSON = ("application/x-ndjson", "application/ndjson")

Node = dict[str, Any]


def narrow(schema: Node) -> None:
    """Change an OpenAPI schema in place. What is left is allowed by it, but for ids that it cannot tell apart."""
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            del operation["responses"]["default"]  # else no status would be unexpected
            content = operation.get("requestBody", {}).get("content", {})
            kept = content.pop(NDJSON[0], None)  # is one line there, and all of them in an answer
            _visit(operation, _narrow)
            if kept is not None:
                content[NDJSON[0]] = kept
            if path.endswith("/infer"):
                content["application/octet-stream"]["schema"]["format"] = "infer"
            if path.endswith("/{id}") and method == "get":
                operation["parameters"][-1]["schema"]["anyOf"].append({"enum": [PICTURED]})


def _narrow(node: Node) -> None:
    properties = node.get("properties", {})
    if "in" in node and (name := node["name"]) in PARAMETERS:
        node["schema"] |= PARAMETERS[name]
    elif node.get("format") == "vector":
        node |= {"minItems": DIMENSION, "maxItems": DIMENSION}
    elif "encoding_format" in properties:
        properties |= {"model": {"enum": ["encoder"]}, "dimensions": {"enum": [DIMENSION, None]}}
    elif properties.get("name") == {"const": "image"} and "data" in properties:
        parameters = {"parameters": properties["parameters"]}
        node.clear()
        node["anyOf"] = [tensor | {"properties": tensor["properties"] | parameters} for tensor in TENSORS]
    if lines_schema := node.get(NDJSON[0], {}).get("schema"):
        node[NDJSON[0]] = {"schema": {"type": "array", "items": lines_schema}}


def _tensor(datatype: str, shape: list[int], data: Node) -> Node:
    """An input of the Open Inference Protocol whose parts go together."""
    values = {"name": "image", "datatype": datatype, "shape": shape}
    fixed = {name: {"const": value} for name, value in values.items()}
    return {
        "type": "object",
        "properties": fixed | {"data": data},
        "required": ["name", "datatype", "shape", "data"],
        "additionalProperties": False,
    }


def _images(count: int) -> Node:
    return {"type": "array", "items": {"type": "string", "format": "image"}, "minItems": count, "maxItems": count}


TENSORS = [
    _tensor("BYTES", [1], _images(1)),
    _tensor("BYTES", [2], _images(2)),
    _tensor("UINT8", [1, SIZE, SIZE, 3], {"const": [7] * SIZE * SIZE * 3}),
]
PARAMETERS: dict[str, Node] = {
    "name": {"enum": ["encoder"]},
    "version": {"enum": [VERSION]},
    "id": {"anyOf": [{"enum": list(IDS)}, {"type": "string", "minLength": 1}]},
    "filter": {"format": "filter"},
    "metadata": {"format": "metadata"},
    "Inference-Header-Content-Length": {"enum": [JSON_BYTES]},
}


def _visit(node: Any, change: Callable[[Node], None]) -> None:
    """Change all objects in `node`, inner ones first, so that what a change brings is not changed again."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _visit(child, change)
    if isinstance(node, dict):
        change(node)
