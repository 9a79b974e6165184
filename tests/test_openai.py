"""OpenAI's endpoint: the real client against a real server, and what a bad request gets in OpenAI's own shape."""

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.app import build_app
from handlers.openai import MAX_BODY_BYTES, MAX_INPUTS
from handlers.service import Service
from tests.pictures import encode, scene
from tests.server import Server, read_answer
from tests.serving import JPEG, OTHER, PATH, connect, front_with, samples, vector_of

EMBEDDINGS = "/v1/embeddings"
TIFF = encode(scene(20, 20), "TIFF")


def data_uri(photo: bytes, media_type: str = "image/jpeg") -> str:
    return f"data:{media_type};base64,{b64encode(photo).decode()}"


def floats(text: str) -> np.ndarray:
    return np.frombuffer(b64decode(text, validate=True), "<f4")


@pytest.fixture
def served_on(server: Server, seeded_store: Path) -> Iterator[None]:
    """After a bad request: the same process, no traceback in its log, the next good request right."""
    yield
    assert server.process.poll() is None
    answer = httpx.post(server.url + EMBEDDINGS, json={"model": "encoder", "input": data_uri(JPEG)}, timeout=30)
    expected = vector_of(Encoder.load(seeded_store), JPEG)
    np.testing.assert_allclose(answer.json()["data"][0]["embedding"], expected, atol=1e-6)
    assert "Traceback" not in server.log


@pytest.fixture
def api(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, with nothing but its address changed."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as api:
        yield api


def post(client: httpx.Client, **arguments: Any) -> httpx.Response:
    """Ask for embeddings; the model is the right one unless told otherwise."""
    return client.post(EMBEDDINGS, json={"model": "encoder", **arguments})


def assert_error(answer: httpx.Response, status: int, *words: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object, and nothing beside it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["param"] == param
    for word in words:
        assert word in error["message"]
    return error


# The real client


def test_the_real_client_gets_the_vector_that_predictions_give(api: openai.OpenAI, client: httpx.Client) -> None:
    expected = np.array(client.post(PATH, content=JPEG).json()["embedding"])
    answer = api.embeddings.create(model="encoder", input=data_uri(JPEG))  # the client asks for base64
    assert float(np.dot(answer.data[0].embedding, expected)) == pytest.approx(1, abs=1e-5)
    assert (answer.object, answer.data[0].object, answer.data[0].index) == ("list", "embedding", 0)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (0, 0)


def test_the_real_client_gets_many_vectors_in_the_order_of_its_images(api: openai.OpenAI, seeded_store: Path) -> None:
    encoder = Encoder.load(seeded_store)
    photos = [JPEG, OTHER, JPEG]
    answer = api.embeddings.create(model="encoder", input=[data_uri(photo) for photo in photos])
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    for entry, photo in zip(answer.data, photos, strict=True):
        np.testing.assert_allclose(entry.embedding, vector_of(encoder, photo), atol=1e-6)


def test_the_real_client_asking_for_floats_gets_the_same_ones(api: openai.OpenAI) -> None:
    plain = api.embeddings.create(model="encoder", input=data_uri(JPEG), encoding_format="float")
    packed = api.embeddings.create(model="encoder", input=data_uri(JPEG), encoding_format="base64")
    text: Any = packed.data[0].embedding  # asked for by name, base64 stays what it is
    assert floats(text).tolist() == np.array(plain.data[0].embedding, np.float32).tolist()


def test_the_real_client_lists_the_model_and_embeds_by_its_id(api: openai.OpenAI, seeded_store: Path) -> None:
    model_id = Manifest.read(seeded_store).model_id
    assert [model.id for model in api.models.list()] == [model_id]
    assert api.models.retrieve(model_id).id == api.models.retrieve("encoder").id == model_id
    assert api.embeddings.create(model=model_id, input=data_uri(JPEG)).model == model_id


def test_the_real_client_raises_its_own_errors(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        api.embeddings.create(model="text-embedding-3-small", input=data_uri(JPEG))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="is not base64"):
        api.embeddings.create(model="encoder", input="The food was delicious")
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt-4o")


def test_the_asynchronous_client_works_too(server: Server) -> None:
    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as api:
            asked = [api.embeddings.create(model="encoder", input=data_uri(photo)) for photo in (JPEG, OTHER)]
            return sum(len(answer.data[0].embedding) for answer in await asyncio.gather(*asked))

    assert asyncio.run(ask()) == 2 * 16


# What is taken


@pytest.mark.parametrize(
    "text",
    [
        b64encode(JPEG).decode(),
        data_uri(JPEG),
        data_uri(JPEG, "image/png"),  # what it is, its bytes decide
        data_uri(JPEG, "image/jpeg;name=a.jpg"),
        data_uri(JPEG).replace("data:image/jpeg;base64", "DATA:IMAGE/JPEG;BASE64"),
    ],
    ids=["bare", "data URI", "another image type", "parameters", "capitals"],
)
def test_an_image_is_taken_as_bare_base64_or_as_a_data_uri(
    client: httpx.Client, seeded_store: Path, text: str
) -> None:
    (entry,) = post(client, input=text).json()["data"]
    np.testing.assert_allclose(entry["embedding"], vector_of(Encoder.load(seeded_store), JPEG), atol=1e-6)


@pytest.mark.parametrize(
    "optional", [{"dimensions": 16}, {"dimensions": None}, {"user": "u"}, {"encoding_format": None}]
)
def test_optional_arguments_that_change_nothing_are_taken(client: httpx.Client, optional: dict[str, Any]) -> None:
    assert post(client, input=data_uri(JPEG), **optional).status_code == 200


def test_base64_is_little_endian_float32_of_the_floats(client: httpx.Client) -> None:
    plain = post(client, input=data_uri(JPEG)).json()["data"][0]["embedding"]
    packed = post(client, input=data_uri(JPEG), encoding_format="base64").json()["data"][0]["embedding"]
    assert floats(packed).tolist() == np.array(plain, np.float32).tolist()


def test_requests_are_counted_as_predictions_and_descriptions_are_not(client: httpx.Client) -> None:
    before = samples(client.get("/metrics").text)
    post(client, input=data_uri(JPEG))
    client.get("/v1/models")
    after = samples(client.get("/metrics").text)
    (total,) = (name for name in after if name.startswith("akin_stage_seconds_count") and 'stage="total"' in name)
    for name in ('akin_requests_total{status="200"}', total):
        assert after[name] - before.get(name, 0) == 1


# Some images bad, and all of them


def test_a_hundred_images_with_a_damaged_one_give_99_vectors_and_one_error(
    client: httpx.Client, api: openai.OpenAI, seeded_store: Path
) -> None:
    photos = [JPEG] * 100
    photos[37] = JPEG[: len(JPEG) // 2]
    answer = post(client, input=[data_uri(photo) for photo in photos])
    assert answer.status_code == 200
    entries = answer.json()["data"]
    assert [entry["index"] for entry in entries] == list(range(100))
    bad = entries.pop(37)
    assert bad["embedding"] is None
    assert bad["error"]["code"] == "invalid_image" and bad["error"]["param"] == "input[37]"
    assert "damaged JPEG" in bad["error"]["message"]
    vectors = np.array([entry["embedding"] for entry in entries])
    np.testing.assert_allclose(vectors, np.tile(vector_of(Encoder.load(seeded_store), JPEG), (99, 1)), atol=1e-6)

    typed = api.embeddings.create(model="encoder", input=[data_uri(photo) for photo in photos])
    missing: Any = typed.data[37].embedding
    assert missing is None and len(typed.data[38].embedding) == 16


def test_each_kind_of_bad_image_among_good_ones_gets_its_own_error(client: httpx.Client) -> None:
    bad = [
        data_uri(TIFF),
        data_uri(JPEG, "text/html"),
        "data:image/jpeg,%FF%D8",
        "https://example.org/a.jpg",
        "AA=A",
        "é",
        "",
    ]
    entries = post(client, input=[data_uri(JPEG), *bad]).json()["data"]
    assert entries[0]["embedding"] and "error" not in entries[0]
    found = [(entry["error"]["code"], entry["error"]["message"]) for entry in entries[1:]]
    expected = [
        ("unsupported_image_media_type", "TIFF"),
        ("unsupported_image_media_type", "'text/html'"),
        ("invalid_image", "without ;base64"),
        ("invalid_image", "fetches none"),
        ("invalid_image", "'AA=A' is not base64"),
        ("invalid_image", "'é' is not base64"),
        ("invalid_image", "empty"),
    ]
    for (code, message), (expected_code, word) in zip(found, expected, strict=True):
        assert code == expected_code and word in message


@pytest.mark.parametrize(
    ("given", "status", "code", "word"),
    [
        (data_uri(TIFF), 415, "unsupported_image_media_type", "TIFF"),
        ([data_uri(TIFF), data_uri(TIFF)], 415, "unsupported_image_media_type", "none of the 2 images"),
        ([data_uri(TIFF), "junk!"], 400, "unsupported_image_media_type", "none of the 2 images"),
        (data_uri(JPEG[:200]), 400, "invalid_image", "damaged"),
        (data_uri(JPEG, "application/pdf"), 415, "unsupported_image_media_type", "application/pdf"),
    ],
)
def test_a_request_without_one_good_image_fails(
    client: httpx.Client, served_on: None, given: Any, status: int, code: str, word: str
) -> None:
    error = assert_error(post(client, input=given), status, word, param="input")
    assert error["code"] == code


# Arguments


@pytest.mark.parametrize(
    ("arguments", "param", "word"),
    [
        ({}, "input", "input is null"),
        ({"input": []}, "input", "0 images"),
        ({"input": [data_uri(JPEG)] * (MAX_INPUTS + 1)}, "input", "129 images"),
        ({"input": {"image": "x"}}, "input", "an object"),
        ({"input": [1, 2, 3]}, "input[0]", "input[0] is 1"),  # tokens, for OpenAI's text models
        ({"input": ["AAAA", ["AAAA"]]}, "input[1]", "a list"),
        ({"input": "AAAA", "encoding_format": "int8"}, "encoding_format", "'int8'"),
        ({"input": "AAAA", "encoding_format": 5}, "encoding_format", "5"),
        ({"input": "AAAA", "dimensions": 8}, "dimensions", "has 16"),
        ({"input": "AAAA", "dimensions": 16.0}, "dimensions", "16.0"),
        ({"input": "AAAA", "dimensions": True}, "dimensions", "true"),
        ({"input": "AAAA", "dimension": 16}, "dimension", "unknown argument 'dimension'"),
        ({"input": "AAAA", "model": ""}, "model", "no model"),
        ({"input": "AAAA", "model": None}, "model", "'encoder'"),
    ],
)
def test_a_bad_argument_is_refused_by_its_name(
    client: httpx.Client, served_on: None, arguments: dict[str, Any], param: str, word: str
) -> None:
    assert_error(post(client, **arguments), 400, word, param=param)


@pytest.mark.parametrize("model", ["gpt-4o", ["encoder"], {"id": "encoder"}, 7])
def test_another_model_is_not_found(client: httpx.Client, model: Any) -> None:
    error = assert_error(post(client, model=model, input=data_uri(JPEG)), 404, "'encoder'", param="model")
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"NaN",
        b'{"model": "encoder", "input": NaN}',
        b'{"model": "encoder", "input": "AAAA", "dimensions": 1e400}',
        b'{"model": "encoder", "input": "\xff"}',
        b'{"model": "encoder", "input": "\\ud800"}',
        b'{"model": "encoder", "input": "AAAA", "input": [}',
        b"[" * 1_000_000,
        b'{"input":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model": "encoder", "input": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b"[" + b"[]," * 1_000_000 + b"[]]",
        b'{"model": "encoder", "input": "x", ' + b'"input": "AAAA", ' * 5000 + b'"input": "x"}',
        b"--x\r\ncontent-disposition: form-data\r\n\r\n--x--\r\n",
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_a_body_that_is_no_request_is_refused(client: httpx.Client, served_on: None, body: bytes) -> None:
    answer = client.post(EMBEDDINGS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error" and answer.json()["error"]["message"]


def test_the_last_of_equal_keys_counts(client: httpx.Client) -> None:
    body = f'{{"input": "junk", "model": "encoder", "input": "{data_uri(JPEG)}"}}'
    assert client.post(EMBEDDINGS, content=body).status_code == 200


def test_other_methods_and_paths_are_refused(client: httpx.Client) -> None:
    refused = client.get(EMBEDDINGS)
    assert_error(refused, 405, "POST")
    assert refused.headers["allow"] == "POST"
    assert_error(client.post("/v1/models"), 405, "GET")
    assert "/v1/embeddings" in client.post("/v1/chat/completions", json={}).json()["error"]


# Size


def test_a_body_over_the_cap_is_refused_before_it_is_sent(server: Server) -> None:
    with connect(server) as connection:
        head = f"POST {EMBEDDINGS} HTTP/1.1\r\nhost: akin\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n\r\n"
        connection.sendall(head.encode())
        refused = read_answer(connection)
    assert refused.status == 413
    assert str(MAX_BODY_BYTES) in refused.json["error"]["message"]


def test_an_image_over_the_cap_of_one_is_refused_as_the_hot_path_does(client: httpx.Client, served_on: None) -> None:
    large = data_uri(bytes(17 << 20))
    error = assert_error(post(client, input=large), 413, param="input")
    assert error["code"] == "image_too_large"


# Early, and too many


def test_before_it_is_ready_and_with_a_full_queue_it_says_503_and_when_to_come_again(seeded_store: Path) -> None:
    async def ask(service: Service | None) -> list[httpx.Response]:
        front = front_with(service, capacity=0)
        try:
            transport = httpx.ASGITransport(build_app(front))
            async with httpx.AsyncClient(transport=transport, base_url="http://akin") as client:
                embedded = await client.post(EMBEDDINGS, json={"model": "encoder", "input": data_uri(JPEG)})
                return [embedded, await client.get("/v1/models")]
        finally:
            front.close()

    for early in asyncio.run(ask(None)):
        assert_error(early, 503, "loading")
        assert early.headers["retry-after"] == "1"
    full, models = asyncio.run(ask(Service(Encoder.load(seeded_store))))
    assert_error(full, 503, "send again")
    assert full.headers["retry-after"] == "1"
    assert models.status_code == 200
