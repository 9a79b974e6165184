"""What schemathesis sends to akin: pictures where bytes are asked for, rows, tars and tensors; and what it takes for
a failure. What the schema says of this very server is in tests/fuzz_narrow.py.

Loaded by its command line (SCHEMATHESIS_HOOKS), see tests/fuzz_api.py.
"""

import json
import os
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests import fuzz_seeds
from tests.fuzz_narrow import DIMENSION, IDS, JSON_BYTES, NDJSON, narrow

ANSWERED = Path(os.environ["AKIN_FUZZ_ANSWERED"])
PICTURES = list(fuzz_seeds.pictures())
WRONG_HEADER = re.compile(r"(?:`|/properties/)akin-(\w+)")
WRONG_PART = re.compile(r"/properties/(k|fields|encoding)\b")
UNKNOWN_HEADER = re.compile(r"header - object with unexpected properties|header: violates `additionalProperties`")
SEVERAL = re.compile(r"^ *- (.*)$", re.MULTILINE)  # of several wrong components, each
FILTERS = ('{"label": "cat"}', '{"year": {"gte": 1990, "lt": 2000}}', '{"tag": ["a", 1, true]}', "null")
METADATA = ('{"year": 1998}', "{}", "null", '{"a": {"b": [null, "\\u0000"]}}')
ACCEPTED = ("*/*", "application/octet-stream", "application/x-npy", "text/html")


answered: set[str] = set()


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


def infer_request(image: bytes) -> bytes:
    """A body of the Open Inference Protocol: JSON of JSON_BYTES, and behind it the image as a tensor of BYTES."""
    tensor = len(image).to_bytes(4, "little") + image
    size = {"binary_data_size": len(tensor)}
    asked = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": size}]}
    return json.dumps(asked).encode().ljust(JSON_BYTES) + tensor


schemathesis.openapi.format("binary", some_bytes)
schemathesis.openapi.format("image", as_text | st.text(max_size=40))
schemathesis.openapi.format("infer", some_bytes.map(infer_request) | some_bytes)
schemathesis.openapi.format("filter", st.sampled_from(FILTERS) | st.text(max_size=20))
schemathesis.openapi.format("metadata", st.sampled_from(METADATA) | st.text(max_size=20))
schemathesis.openapi.media_type("image/jpeg", some_bytes, aliases=["image/png", "image/webp", "image/gif"])
schemathesis.openapi.media_type(NDJSON[0], lines, aliases=[NDJSON[1]])
schemathesis.openapi.media_type("application/x-tar", tars | tars.flatmap(damaged))


@schemathesis.deserializer(*NDJSON)
def read_lines(context: object, response: Any) -> list[Any]:
    """NDJSON as a list, whose schema `before_load_schema` made of that of a line."""
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.hook
def before_load_schema(context: object, raw_schema: dict[str, Any]) -> None:
    """Say of this server what its schema cannot say of all."""
    narrow(raw_schema)


@schemathesis.hook
def map_case(context: object, case: Any) -> Any:
    """What is to be good has its options beside an image in the query, beside JSON in that."""
    if case.media_type == "application/json" and case.meta.generation.mode.is_positive:
        case.query = {}
        case.headers.pop("Inference-Header-Content-Length", None)
    return case


@schemathesis.hook
def flatmap_headers(context: object, headers: dict[str, Any] | None) -> st.SearchStrategy[dict[str, Any]]:
    """What the client accepts decides what some routes answer with."""
    return st.sampled_from(ACCEPTED).map(lambda accepted: {**(headers or {}), "Accept": accepted})


@schemathesis.hook
def after_call(context: object, case: Any, response: Any) -> None:
    """Note which operations have been answered well."""
    operation = f"{case.method} {case.operation.path}"
    if response.status_code == 200 and operation not in answered:
        answered.add(operation)
        with ANSWERED.open("a") as file:
            file.write(f"{operation}\n")


@schemathesis.hook
def filter_failure(context: object, failure: Exception, case: Any, response: Any) -> bool:
    """Whatever is taken against the schema is a failure, unless each thing that is wrong is one that is not read."""
    said = str(failure)
    if "Schema-violating request accepted" not in said and "Invalid data should have been rejected" not in said:
        return True
    wrong = said.partition("Invalid component")[2]
    return not all(is_unread(component, case) for component in SEVERAL.findall(wrong) or [wrong])


def is_unread(component: str, case: Any) -> bool:
    """Options are read from the query, else the form, else the headers, and the first one found hides the others;
    HTTP wants unknown headers ignored; every part of a form is a picture unless it is an option, and an empty list of
    options is no part."""
    is_form = (case.media_type or "").startswith("multipart/")
    query, form = set(case.query or ()), set(case.body) if is_form and isinstance(case.body, dict) else set()
    if headers := set(WRONG_HEADER.findall(component)):
        return headers <= query | form
    if options := set(WRONG_PART.findall(component)):
        return options <= query | {name for name in form if case.body[name] == []}
    return is_form or UNKNOWN_HEADER.search(component) is not None
