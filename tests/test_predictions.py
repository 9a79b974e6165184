"""Good requests to `POST /predictions/NAME`, over a real socket: every way to send, every answer."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from tests.serving import JPEG, OTHER, PATH, SEEDED, assert_refused, vector_of


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
