"""The schema behind /docs says what may come of every request; tests/test_fuzz.py holds the answers against it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlers import door, exchange, refusals, wire

WRITES = {("put", "/index/{id}"), ("delete", "/index/{id}"), ("post", "/index/bulk")}
OF_MODEL = "/models/{name}"


@pytest.fixture
def schema(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_operation_tells_of_the_refusals_that_come_before_its_route(schema: dict[str, Any]) -> None:
    code = Path(wire.__file__).read_text() + Path(door.__file__).read_text()
    raised = set(re.findall(r"(?:Refused|error_answer)\((\d{3})", code))
    assert {"400", "408", "414", "431", "503"} <= raised
    code = Path(exchange.__file__).read_text() + Path(refusals.__file__).read_text()
    raised |= set(re.findall(r"RequestError\((?:\s*)(\d{3})", code))
    for _, _, operation in operations(schema):
        told = set(re.findall(r"\b\d{3}\b", operation["responses"]["default"]["description"]))
        assert raised | {"413"} <= told


def test_writes_alone_are_marked_as_wanting_the_token_and_as_closed_to_others(schema: dict[str, Any]) -> None:
    found = {
        (method, path.removeprefix(OF_MODEL))
        for method, path, operation in operations(schema)
        if operation.get("security") == [{"bearer": []}] and "403" in operation["responses"]
    }
    assert found == WRITES
    assert not any("403" in of["responses"] for method, path, of in operations(schema) if "security" not in of)


def test_every_operation_has_an_id_of_its_own_and_what_its_path_names(schema: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(schema)]
    assert len(set(ids)) == len(ids) == 38
    for _, path, operation in operations(schema):
        named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), path
