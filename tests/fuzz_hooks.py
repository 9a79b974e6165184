"""What schemathesis sends to akin: pictures where bytes are asked for, and the names and sizes of the model served.

Loaded by its command line (SCHEMATHESIS_HOOKS), see tests/fuzz_api.py.
"""

import json
import os
import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests import fuzz_seeds

DIMENSION = int(os.environ["AKIN_FUZZ_DIMENSION"])
VERSION = os.environ["AKIN_FUZZ_VERSION"]
IDS = ("zero", "cats/1.jpg", "ü ?#%41", "..")
PICTURES = list(fuzz_seeds.pictures())
NDJSON = ("application/x-ndjson", "application/ndjson")
ACCEPTED = ("*/*", "application/octet-stream", "application/x-npy", "text/html")

Node = dict[str, Any]


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` cut off, or with one byte set to another."""
    at = st.integers(0, len(data) - 1)
    cut = at.map(lambda end: data[:end])
    changed = st.tuples(at, st.binary(min_size=1, max_size=1)).map(
        lambda change: data[: change[0]] + change[1] + data[change[0] + 1 :]
    )
    return cut | changed


picture = st.sampled_from(PICTURES)
some_bytes = picture | picture.flatmap(damaged) | st.binary(max_size=100)
as_text = st.tuples(st.sampled_from(["", "data:image/png;base64,"]), some_bytes).map(
    lambda parts: parts[0] + b64encode(parts[1]).decode()
)
id_text = st.sampled_from(IDS) | st.text(max_size=20)
row = st.fixed_dictionaries(
    {"id": id_text},
    optional={
        "vector": st.lists(st.floats(-1, 1), min_size=DIMENSION, max_size=DIMENSION),
        "image": as_text,
        "label": st.none() | st.text(max_size=20),
        "metadata": st.none() | st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.text(max_size=5)),
        "delete": st.booleans(),
    },
).map(lambda fields: json.dumps(fields).encode())
lines = st.lists(row | st.binary(max_size=50), max_size=8).map(b"\n".join)
tars = st.sampled_from([stream for stream in fuzz_seeds.streams() if b"ustar" in stream])

schemathesis.openapi.format("binary", some_bytes)
schemathesis.openapi.format("image", as_text | st.text(max_size=40))
schemathesis.openapi.media_type(
    "application/octet-stream", some_bytes, aliases=["image/jpeg", "image/png", "image/webp", "image/gif"]
)
schemathesis.openapi.media_type(NDJSON[0], lines, aliases=[NDJSON[1]])
schemathesis.openapi.media_type("application/x-tar", tars | tars.flatmap(damaged))


@schemathesis.deserializer(*NDJSON)
def read_lines(context: object, response: Any) -> list[Any]:
    """NDJSON as a list, whose schema `before_load_schema` made of that of a line."""
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.hook
def before_load_schema(context: object, raw_schema: Node) -> None:
    """Say of this server what its schema cannot say of all: names, versions and dimensions."""
    known = {"name": "encoder", "version": VERSION}

    def narrow(node: Node) -> None:
        if node.get("in") == "path" and node["name"] in known:
            node["schema"] = {"enum": [known[node["name"]]]}
        elif node.get("in") == "path" and node["name"] == "id":
            node["schema"] = {"anyOf": [{"enum": list(IDS)}, node["schema"]]}
        elif node.get("format") == "vector":
            node |= {"minItems": DIMENSION, "maxItems": DIMENSION}
        elif "encoding_format" in node.get("properties", {}):
            node["properties"] |= {"model": {"enum": ["encoder"]}, "dimensions": {"enum": [DIMENSION, None]}}
        if lines_schema := node.get(NDJSON[0], {}).get("schema"):
            node[NDJSON[0]] = {"schema": {"type": "array", "items": lines_schema}}

    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            kept = content.pop(NDJSON[0], None)
            _visit(operation, narrow)
            if kept is not None:
                content[NDJSON[0]] = kept


@schemathesis.hook
def flatmap_headers(context: object, headers: Node | None) -> st.SearchStrategy[Node]:
    """What the client accepts decides what some routes answer with."""
    return st.sampled_from(ACCEPTED).map(lambda accepted: {**(headers or {}), "Accept": accepted})


@schemathesis.hook
def filter_failure(context: object, failure: Exception, case: Any, response: Any) -> bool:
    """Headers that are wrong are ignored, as HTTP wants it, where they are unknown or the query says otherwise; and
    every part of a form is taken for a picture. Whatever else is taken against the schema is a failure."""
    said = str(failure)
    if "Schema-violating request accepted" not in said and "Invalid data should have been rejected" not in said:
        return True
    form = (case.media_type or "").startswith("multipart/")
    return not (form or re.search(r"\bin header\b|\bheader:", said))


def _visit(node: Any, change: Callable[[Node], None]) -> None:
    if isinstance(node, dict):
        change(node)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _visit(child, change)
