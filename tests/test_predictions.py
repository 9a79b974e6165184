"""Good requests to `POST /predictions/NAME`, over a real socket: every way to send, every answer."""

from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.service import Service
from tests.serving import JPEG, OTHER, PATH, SEEDED, assert_refused, front_with, talk, vector_of
from tests.tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="module")
def vectors(seeded_store: Path) -> dict[bytes, np.ndarray]:
    """What the encoder itself gives for each picture, by picture."""
    encoder = Encoder.load(seeded_store)
    return {photo: vector_of(encoder, photo) for photo in (JPEG, OTHER)}


def test_a_photo_gets_the_vector_of_the_encoder_itself(
    client: httpx.Client, vectors: dict[bytes, np.ndarray], seeded_store: Path
) -> None:
    answer = client.post(PATH, content=JPEG).json()
    assert set(answer) == {"model", "embedding", "logits", "label", "confidence", "timing_ms"}
    assert answer["model"] == Manifest.read(seeded_store).model_id
    np.testing.assert_allclose(answer["embedding"], vectors[JPEG], atol=1e-6)
    assert answer["label"] == ("cat", "dog")[int(np.argmax(answer["logits"]))]


@pytest.mark.parametrize(
    "content_type",
    [
        "image/jpeg",
        "IMAGE/PNG",
        "image/jpeg; name=a.jpg",
        "application/octet-stream",
        "application/x-www-form-urlencoded",  # what curl --data-binary says unless told otherwise
        None,
    ],
)
def test_raw_bytes_are_taken_whatever_kind_of_image_they_are_said_to_be(
    client: httpx.Client, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert client.post(PATH, content=JPEG, headers=headers).status_code == 200


def test_put_is_taken_because_curl_sends_it_for_a_file(client: httpx.Client) -> None:
    assert client.put(PATH, content=JPEG).status_code == 200


def test_a_seeded_picture_finds_itself_at_the_first_start(client: httpx.Client) -> None:
    neighbors = client.post(PATH, params={"k": 2}, content=SEEDED[1]).json()["neighbors"]
    assert (neighbors[0]["id"], neighbors[0]["label"]) == ("one", "dog")
    assert neighbors[0]["score"] == pytest.approx(1, abs=1e-3)  # the seed is float16
    assert len(neighbors) == 2 and neighbors[1]["score"] < neighbors[0]["score"]


@pytest.mark.parametrize(
    "sent",
    [
        {"params": {"k": 1, "fields": "label,neighbors"}, "content": JPEG},
        {"headers": {"akin-k": "1", "akin-fields": "label,neighbors"}, "content": JPEG},
        {"data": {"k": "1", "fields": "label,neighbors"}, "files": {"image": JPEG}},
        {"params": {"k": 1}, "headers": {"akin-fields": "label,neighbors"}, "content": JPEG},
    ],
    ids=["query", "headers", "form", "query and headers"],
)
def test_options_are_taken_from_query_headers_and_form(client: httpx.Client, sent: dict[str, object]) -> None:
    answer = client.post(PATH, **sent).json()
    assert set(answer) == {"label", "neighbors"}
    assert len(answer["neighbors"]) == 1


def test_the_query_goes_before_the_form_and_the_form_before_the_headers(client: httpx.Client) -> None:
    everywhere = {"headers": {"akin-k": "1"}, "data": {"k": "2"}, "files": {"image": JPEG}}
    assert len(client.post(PATH, params={"k": 3}, **everywhere).json()["neighbors"]) == 3
    assert len(client.post(PATH, **everywhere).json()["neighbors"]) == 2


def test_several_images_get_one_status_each_in_their_order(
    client: httpx.Client, vectors: dict[bytes, np.ndarray]
) -> None:
    photos = [OTHER, b"%PDF-1.7", JPEG, JPEG[:200], b""]
    answer = client.post(PATH, files=[("image", (f"{n}.jpg", photo)) for n, photo in enumerate(photos)])
    assert answer.status_code == 200
    found = answer.json()
    assert [item["status"] for item in found] == [200, 415, 200, 400, 400]
    np.testing.assert_allclose(found[0]["embedding"], vectors[OTHER], atol=1e-6)
    np.testing.assert_allclose(found[2]["embedding"], vectors[JPEG], atol=1e-6)
    assert "PDF" in found[1]["error"]


def test_a_hundred_images_with_one_damaged_give_ninety_nine_vectors(client: httpx.Client) -> None:
    files = [("images", ("x", b"noise" if number == 40 else JPEG)) for number in range(100)]
    found = client.post(PATH, files=files, params={"fields": "embedding"}).json()
    assert [number for number, item in enumerate(found) if item["status"] != 200] == [40]


def test_one_image_in_a_form_is_answered_by_itself(client: httpx.Client) -> None:
    assert client.post(PATH, files={"photo": JPEG}).json()["label"] in ("cat", "dog")
    assert_refused(client.post(PATH, files={"photo": b"noise"}), 415)


def test_an_option_of_the_query_that_there_is_not_is_refused_with_those_there_are(client: httpx.Client) -> None:
    for query in ("fileds=label", "k=1&a=1", "=", "K=5"):
        assert_refused(client.post(f"{PATH}?{query}", content=JPEG), 400, "k, fields, encoding")


# Numbers instead of JSON


FLOATS, NPY = "application/octet-stream", "application/x-npy"


def numbers(answer: httpx.Response) -> np.ndarray:
    """What either kind holds."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == NPY:
        return np.load(BytesIO(answer.content), allow_pickle=False)
    return np.frombuffer(answer.content, "<f4")


@pytest.mark.parametrize("accept", [FLOATS, NPY, f"{NPY}, */*;q=0.1", "Application/X-NPY;q=0.9"])
def test_the_vector_comes_as_numbers_with_model_and_label_beside_it(
    client: httpx.Client, vectors: dict[bytes, np.ndarray], accept: str
) -> None:
    answer, told = client.post(PATH, content=JPEG, headers={"accept": accept}), client.post(PATH, content=JPEG).json()
    vector = numbers(answer)
    assert (vector.dtype, vector.shape) == (np.float32, (16,))
    np.testing.assert_allclose(vector, vectors[JPEG], atol=1e-6)
    assert answer.headers["akin-model"] == told["model"] and answer.headers["akin-label"] == told["label"]
    assert float(answer.headers["akin-confidence"]) == pytest.approx(told["confidence"], abs=1e-5)


def test_whoever_names_json_first_gets_json(client: httpx.Client) -> None:
    answer = client.post(PATH, content=JPEG, headers={"accept": f"application/json, {NPY}"})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("accept", [FLOATS, NPY])
def test_several_images_are_rows_in_their_order(
    client: httpx.Client, vectors: dict[bytes, np.ndarray], accept: str
) -> None:
    files = [("image", JPEG), ("image", OTHER), ("image", JPEG)]
    answer = client.post(PATH, files=files, headers={"accept": accept})
    rows = numbers(answer).reshape(3, 16)
    np.testing.assert_allclose(rows, np.stack([vectors[each] for _, each in files]), atol=1e-6)
    assert "akin-model" in answer.headers and "akin-label" not in answer.headers


def test_a_npy_of_several_has_a_row_an_image(client: httpx.Client) -> None:
    answer = client.post(PATH, files=[("image", JPEG), ("image", OTHER)], headers={"accept": NPY})
    assert numbers(answer).shape == (2, 16)


def test_one_bad_image_among_numbers_fails_the_request_by_its_place(client: httpx.Client) -> None:
    answer = client.post(PATH, files=[("image", JPEG), ("image", b"noise")], headers={"accept": FLOATS})
    assert_refused(answer, 415, "image 2 of 2: ")


@pytest.mark.parametrize("options", [{"k": 1}, {"fields": "label"}, {"fields": "embedding,neighbors"}])
def test_what_has_no_room_beside_the_numbers_is_refused(client: httpx.Client, options: dict[str, object]) -> None:
    for accept in (FLOATS, NPY):
        answer = client.post(PATH, content=JPEG, params=options, headers={"accept": accept})
        assert_refused(answer, 400, "holds the embedding alone", "leave out k and fields")


def test_the_embedding_may_be_named_where_it_is_all_that_comes(client: httpx.Client) -> None:
    params = {"fields": "embedding", "k": 0}
    assert numbers(client.post(PATH, content=JPEG, params=params, headers={"accept": FLOATS})).shape == (16,)


def test_numbers_of_a_model_without_a_probe_have_no_label(tmp_path: Path) -> None:
    manifest = write_tiny_encoder(tmp_path, classes=())

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(PATH, content=JPEG, headers={"accept": NPY})
        assert numbers(answer).shape == (16,)
        assert answer.headers["akin-model"] == manifest.model_id
        assert "akin-label" not in answer.headers and "akin-confidence" not in answer.headers

    talk(front_with(Service(Encoder.load(tmp_path))), scenario)
