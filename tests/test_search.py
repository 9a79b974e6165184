"""Search over HTTP: by vector, row and image, with filters and thresholds, against known answers and brute force."""

from base64 import b64encode
from typing import Any

import httpx
import numpy as np
import pytest

from index.filters import Filter
from tests.brute_index import BruteIndex
from tests.index_requests import DIMENSION, SEARCH, found, put, unit
from tests.pictures import encode, scene
from tests.serving import JPEG, PATH, assert_refused


def test_the_ways_to_ask_for_the_same_image_agree(writer: httpx.Client) -> None:
    for seed in range(6):
        writer.put(f"/index/{seed}", content=encode(scene(40, 40, seed), "PNG"))
    picture = encode(scene(40, 40, 2), "PNG")
    by_body = found(writer.post(SEARCH, params={"k": 4}, content=picture))
    by_base64 = found(writer.post(SEARCH, json={"image": b64encode(picture).decode(), "k": 4}))
    vector = writer.get("/index/2").json()["vector"]
    by_vector = found(writer.post(SEARCH, json={"vector": vector, "k": 4}))
    by_id = found(writer.post(SEARCH, json={"id": "2", "k": 3}))
    predicted = writer.post(PATH, params={"k": 4}, content=picture)
    assert by_body == by_base64 == by_vector == ["2", *by_id] == found(predicted)


def test_a_row_is_not_among_its_own_neighbors_even_beside_its_copies(writer: httpx.Client) -> None:
    for id in "abcd":
        put(writer, id, unit(0))
    assert found(writer.post(SEARCH, json={"id": "b", "k": 2})) == ["a", "c"]
    assert found(writer.post(SEARCH, json={"id": "b"})) == ["a", "c", "d"]


def test_rows_without_direction_to_the_query_still_fill_k_unless_a_score_is_asked_for(writer: httpx.Client) -> None:
    put(writer, "same", unit(0))
    put(writer, "near", unit(0, 1))
    put(writer, "far", unit(2))
    assert found(writer.post(SEARCH, json={"vector": unit(0)})) == ["same", "near", "far"]
    assert found(writer.post(SEARCH, json={"vector": unit(0), "min_score": 0.5})) == ["same", "near"]
    assert found(writer.post(SEARCH, json={"vector": unit(0), "min_score": 0.99, "k": 1})) == ["same"]
    assert found(writer.post(SEARCH, json={"vector": unit(2), "min_score": 0.5})) == ["far"]


def test_filters_choose_among_labels_and_metadata(writer: httpx.Client) -> None:
    put(writer, "a", unit(0), label="cat", metadata={"year": 1990, "indoors": True})
    put(writer, "b", unit(0), label="dog", metadata={"year": 1995.5, "indoors": False})
    put(writer, "c", unit(0), label="cat", metadata={"year": "1990", "indoors": 1})
    put(writer, "d", unit(0))
    for where, expected in [
        ({"label": "cat"}, ["a", "c"]),
        ({"label": ["cat", "dog"], "indoors": True}, ["a"]),
        ({"year": 1990}, ["a"]),
        ({"year": "1990"}, ["c"]),
        ({"year": {"gte": 1990, "lt": 1996}}, ["a", "b"]),
        ({"label": "bird"}, []),
        ({}, ["a", "b", "c", "d"]),
    ]:
        assert found(writer.post(SEARCH, json={"vector": unit(0), "filter": where})) == expected, where
    in_query = writer.post(SEARCH, params={"filter": '{"label":"dog"}', "k": 5, "min_score": -1}, content=JPEG)
    assert found(in_query) == ["b"]


def test_the_neighbors_vote_by_similarity(writer: httpx.Client) -> None:
    for id, places, label in (("a", [0], "cat"), ("b", [0], "cat"), ("c", [0], "dog"), ("d", [1], None)):
        put(writer, id, unit(*places), label=label)
    answer = writer.post(SEARCH, json={"vector": unit(0), "min_score": 0.5}).json()
    assert answer["vote"] == [
        {"label": "cat", "share": pytest.approx(2 / 3)},
        {"label": "dog", "share": pytest.approx(1 / 3)},
    ]
    assert set(answer["timing_ms"]) == {"search"}


def test_a_batch_of_vectors_answers_a_list_in_their_order(writer: httpx.Client) -> None:
    for place in range(4):
        put(writer, str(place), unit(place))
    answers = writer.post(SEARCH, json={"vectors": [unit(2), unit(0)], "k": 1}).json()
    assert [answer["neighbors"][0]["id"] for answer in answers] == ["2", "0"]
    assert all(set(answer) == {"model", "neighbors", "vote", "timing_ms"} for answer in answers)


def test_an_empty_index_answers_no_neighbors(writer: httpx.Client) -> None:
    answer = writer.post(SEARCH, json={"vector": unit(0)}).json()
    assert answer["neighbors"] == [] and answer["vote"] == []


def test_answers_are_those_of_brute_force(writer: httpx.Client) -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((300, DIMENSION)).astype(np.float32)
    labels = [["cat", "dog", None][row % 3] for row in range(300)]
    metadata = [{"year": 1900 + row % 7} for row in range(300)]
    brute = BruteIndex("", DIMENSION)
    brute.add([str(row) for row in range(300)], vectors, labels, metadata)
    lines = "\n".join(
        httpx.Request(
            "PUT", "http://x", json={"id": str(row), "vector": vector, "label": label, "metadata": fields}
        ).content.decode()
        for row, (vector, label, fields) in enumerate(zip(vectors.tolist(), labels, metadata, strict=True))
    )
    writer.post("/index/bulk", content=lines, headers={"content-type": "application/x-ndjson"})
    for where in (None, {"label": "cat"}, {"label": ["dog"], "year": {"gt": 1903}}):
        queries = random.standard_normal((5, DIMENSION))
        answers = writer.post(
            SEARCH, json={"vectors": queries.tolist(), "k": 7, "filter": where, "min_score": 0}
        ).json()
        expected = brute.search(queries, 7, Filter.parse(where), min_score=0)
        for answer, neighbors in zip(answers, expected, strict=True):
            assert [found["id"] for found in answer["neighbors"]] == [neighbor.id for neighbor in neighbors]
            scores = [found["score"] for found in answer["neighbors"]]
            np.testing.assert_allclose(scores, [neighbor.score for neighbor in neighbors], atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ["names none", "vector"]),
        ({"id": "a", "vector": unit(0)}, ["vector and id"]),
        ({"vector": unit(0), "top": 3}, ["'top'", "vector, vectors, id, image, k, filter, min_score"]),
        ({"vector": [1.0]}, ["1 numbers", "16"]),
        ({"vector": [0.0] * 16}, ["zero"]),
        ({"vectors": []}, ["1 to 1000"]),
        ({"vectors": [unit(0), [1]]}, ["vectors[1]", "16"]),
        ({"vectors": [unit(0)] * 101, "k": 100}, ["101 vectors", "10000"]),
        ({"vectors": [unit(0)] * 1001, "k": 1}, ["1001", "1000"]),
        ({"id": 5}, ["id is 5"]),
        ({"image": 5}, ["image is 5"]),
        ({"vector": unit(0), "k": 0}, ["k is 0", "1 to 1000"]),
        ({"vector": unit(0), "k": 1001}, ["k is 1001", "1000"]),
        ({"vector": unit(0), "k": True}, ["k is true"]),
        ({"vector": unit(0), "k": "5"}, ["k is '5'"]),
        ({"vector": unit(0), "min_score": 1.5}, ["min_score is 1.5", "-1 to 1"]),
        ({"vector": unit(0), "min_score": "x"}, ["min_score is 'x'"]),
        ({"vector": unit(0), "filter": []}, ["filter is []", "label"]),
        ({"vector": unit(0), "filter": {"year": {"above": 3}}}, ["above", "gte"]),
    ],
)
def test_a_bad_search_is_refused_with_value_limit_and_way_out(
    writer: httpx.Client, asked: dict[str, Any], words: list[str]
) -> None:
    assert_refused(writer.post(SEARCH, json=asked), 400, *words)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"k": "x"}, ["k is 'x'", "k=5"]),
        ({"k": "0"}, ["k is 0"]),
        ({"filter": "label=cat"}, ["filter is 'label=cat'"]),
        ({"limit": "5"}, ["'limit'", "k, filter, min_score"]),
    ],
)
def test_a_bad_query_beside_an_image_is_refused(
    writer: httpx.Client, query: dict[str, str], words: list[str]
) -> None:
    assert_refused(writer.post(SEARCH, params=query, content=JPEG), 400, *words)
