"""Rows on their way into the index: what is refused, and what a batch that partly fails leaves."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from handlers.rows import Delete, Put, Refused, commit
from handlers.service import Service
from index.errors import GalleryFull
from tests.index_requests import DIMENSION, SEARCH, Observed, found, unit, vector
from tests.pictures import encode, scene
from tests.serving import JPEG, assert_refused


@pytest.mark.parametrize(
    ("row", "status", "words"),
    [
        ({"vector": unit(0)[:-1]}, 400, ["15 numbers", "16"]),
        ({"vector": [0.0] * 16}, 400, ["zero"]),
        ({"vector": [1e300] * 15 + ["1"]}, 400, ["vector[15]", "'1'", "16 numbers"]),
        ({"vector": [True] * 16}, 400, ["vector[0] is true"]),
        ({"vector": [None] * 16}, 400, ["vector[0] is null"]),
        ({"vector": {"0": 1}}, 400, ["an object", "16 numbers"]),
        ({"vector": [[1.0]] * 16}, 400, ["vector[0] is a list"]),
        ({"vector": unit(0), "image": "x"}, 400, ["both"]),
        ({}, 400, ["neither", "vector"]),
        ({"vektor": unit(0)}, 400, ["'vektor'", "vector, image, label, metadata"]),
        ({"vector": unit(0), "id": "b"}, 400, ["'id'"]),
        ({"vector": unit(0), "label": 5}, 400, ["label is 5"]),
        ({"vector": unit(0), "label": ""}, 400, ["label ''"]),
        ({"vector": unit(0), "metadata": [1]}, 400, ["metadata is a list"]),
        ({"vector": unit(0), "metadata": {"x": "y" * 70_000}}, 400, ["65535"]),
        ({"image": "http://example.com/cat.jpg"}, 400, ["fetches none"]),
        ({"image": "not base64!"}, 400, ["base64"]),
        ({"image": b64encode(encode(scene(20, 20), "TIFF")).decode()}, 415, ["TIFF"]),
        ({"image": b64encode(JPEG[:200]).decode()}, 400, ["damaged JPEG"]),
    ],
)
def test_a_bad_row_is_refused_with_value_limit_and_way_out(
    writer: httpx.Client, row: dict[str, Any], status: int, words: list[str]
) -> None:
    assert_refused(writer.put("/index/a", json=row), status, *words)
    assert writer.get("/index").json()["rows"] == 0


@pytest.mark.parametrize(
    ("query", "body", "kind", "status", "words"),
    [
        ("", b"[1, 2]", "application/json", 400, ["a list", "vector"]),
        ("", b"{", "", 400, ["not JSON"]),
        ("", b'{"vector": [NaN]}', "application/json", 400, ["not JSON"]),
        ("", b'{"x": [%s]}' % (b"1," * 70_000), "application/json", 413, ["commas"]),
        ("", b"", "", 400, ["empty"]),
        ("", b"noise" * 9, "image/png", 415, ["unsupported"]),
        ("", JPEG, "text/plain", 415, ["'text/plain'", "application/json"]),
        ("", JPEG, "multipart/form-data; boundary=x", 415, ["multipart"]),
        ("?k=3", JPEG, "", 400, ["'k'", "label, metadata"]),
        ("?label=", JPEG, "", 400, ["label ''"]),
        ("?metadata=[1]", JPEG, "", 400, ["metadata is a list"]),
        ("?metadata={year:1}", JPEG, "", 400, ["{year:1}", "not JSON"]),
        ("?label=cat", b'{"vector": []}', "application/json", 400, ["'label'", "body"]),
    ],
)
def test_a_bad_body_or_query_is_refused(
    writer: httpx.Client, query: str, body: bytes, kind: str, status: int, words: list[str]
) -> None:
    assert_refused(writer.put("/index/a" + query, content=body, headers={"content-type": kind}), status, *words)


def test_metadata_that_no_answer_could_carry_is_refused(writer: httpx.Client) -> None:
    for depth, status in ((249, 200), (250, 400), (900, 400)):
        nested = b"[" * depth + b"]" * depth
        body = b'{"vector": %s, "metadata": {"x": %s}}' % (str(unit(0)).encode(), nested)
        answer = writer.put("/index/a", content=body)
        assert answer.status_code == status, (depth, answer.text)
    assert found(writer.post(SEARCH, json={"vector": unit(0)})) == ["a"]
    assert len(writer.post(SEARCH, json={"vectors": [unit(0)]}).json()) == 1


def puts(*ids: str) -> list[Put]:
    return [Put(id, vector(number), None, {}) for number, id in enumerate(ids)]


def test_where_removing_fails_the_rows_put_are_durable_and_said_to_be(seeded_store: Path) -> None:
    index = Observed()

    def fail(ids: Any) -> int:
        raise GalleryFull("full")

    index.remove = fail  # type: ignore[method-assign]
    index.add(["old"], vector(9)[None], [None])
    done = commit(Service(Encoder.load(seeded_store), index), [*puts("a"), Delete("old"), Delete("none")])
    assert [row.status if isinstance(row, Refused) else 200 for row in done.results] == [200, 507, 507]
    assert done.stopped is not None and done.stopped.status == 507
    assert index.get(["a"])[0] is not None


def test_a_batch_with_bad_rows_is_still_one_transaction(seeded_store: Path) -> None:
    index = Observed()
    zero = Put("zero", np.zeros(DIMENSION), None, {})
    done = commit(Service(Encoder.load(seeded_store), index), [*puts("a", "b"), zero, *puts("c")])
    assert [isinstance(row, Refused) for row in done.results] == [False, False, True, False]
    assert done.stopped is None and index.sizes[-1] == 3 and index.count == 3
