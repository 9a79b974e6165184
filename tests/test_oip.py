"""The Open Inference Protocol over REST: the real client against a real server, and what a bad request gets."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.app import build_app
from handlers.oip import MAX_NUMBERS
from handlers.openai import MAX_BODY_BYTES, MAX_INPUTS
from handlers.service import Service
from handlers.tokens import Access
from images.decode import decode
from images.spec import PreprocessSpec
from tests.pictures import encode, scene
from tests.server import Server, read_answer
from tests.serving import JPEG, OTHER, PATH, connect, front_with, talk
from tests.tiny_encoder import write_tiny_encoder

SIZE = 32  # of the tiny encoder
MODEL = "/v2/models/encoder"
INFER = f"{MODEL}/infer"
PHOTO = b64encode(JPEG).decode()
TIFF = encode(scene(20, 20), "TIFF")


@pytest.fixture
def api(server: Server) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client."""
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as api:
        yield api


def files(*photos: bytes) -> triton.InferInput:
    """Image files as a tensor."""
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    return tensor.set_data_from_numpy(np.array(photos, np.object_))


def pixels(*photos: bytes) -> np.ndarray:
    """(N, size, size, 3) uint8: what the server itself would make of image files."""
    return np.stack([decode(photo, PreprocessSpec(size=SIZE)) for photo in photos])


def predicted(server: Server, *photos: bytes, k: int = 0) -> list[dict[str, Any]]:
    """What /predictions says of each."""
    ask = {"params": {"k": k, "fields": "embedding,logits,label,neighbors"}, "timeout": 30}
    return [httpx.post(server.url + PATH, content=photo, **ask).json() for photo in photos]


def request(**given: Any) -> dict[str, Any]:
    """A good request, but for what is given: of the tensor, or beside it."""
    beside = {name: given.pop(name) for name in ("id", "outputs", "parameters", "inputs", "more") if name in given}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [PHOTO], **given}
    return {"inputs": [tensor], **beside}


def outputs_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def assert_error(answer: httpx.Response, status: int, *words: str) -> None:
    """The protocol's error, and nothing beside it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    for word in words:
        assert word in answer.json()["error"]


# What is here


def test_the_real_client_finds_server_and_model_alive_and_ready(api: triton.InferenceServerClient) -> None:
    assert api.is_server_live() and api.is_server_ready() and api.is_model_ready("encoder")
    assert not api.is_model_ready("nothing")
    assert api.get_server_metadata()["name"] == "akin"
    assert "binary_tensor_data" in api.get_server_metadata()["extensions"]


def test_the_metadata_tell_the_tensors_and_their_sizes(
    api: triton.InferenceServerClient, seeded_store: Path
) -> None:
    version = Manifest.read(seeded_store).model_digest[:12]
    assert api.get_model_metadata("encoder") == api.get_model_metadata("encoder", version)
    assert api.get_model_metadata("encoder") == {
        "name": "encoder",
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}],
        "outputs": [
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 16]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "neighbor_ids", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "neighbor_scores", "datatype": "FP32", "shape": [-1, -1]},
        ],
    }
    assert api.get_model_repository_index() == [
        {"name": "encoder", "version": version, "state": "READY", "reason": ""}
    ]


def test_a_model_without_probe_and_gallery_has_neither_their_outputs_nor_neighbors(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path, classes=())

    async def scenario(client: httpx.AsyncClient) -> None:
        metadata = (await client.get(MODEL)).json()
        assert [output["name"] for output in metadata["outputs"]] == ["embedding"]
        assert list(outputs_of(await client.post(INFER, json=request()))) == ["embedding"]
        logits = request(outputs=[{"name": "logits"}])
        assert_error(await client.post(INFER, json=logits), 400, "'logits'", "any of embedding")
        assert_error(await client.post(INFER, json=request(parameters={"k": 2})), 409, "no gallery", "--index")

    talk(front_with(Service(Encoder.load(tmp_path))), scenario)


# Images in, tensors out


def test_the_real_client_gets_what_predictions_give(api: triton.InferenceServerClient, server: Server) -> None:
    expected = predicted(server, JPEG, OTHER, k=2)
    answer = api.infer("encoder", [files(JPEG, OTHER)], parameters={"k": 2}, request_id="mine")
    for name, key in (("embedding", "embedding"), ("logits", "logits")):
        np.testing.assert_allclose(answer.as_numpy(name), [one[key] for one in expected], atol=1e-6)
        assert answer.as_numpy(name).dtype == np.float32
    assert answer.as_numpy("label").tolist() == [one["label"].encode() for one in expected]
    near = [one["neighbors"] for one in expected]
    assert answer.as_numpy("neighbor_ids").tolist() == [[each["id"].encode() for each in row] for row in near]
    np.testing.assert_allclose(
        answer.as_numpy("neighbor_scores"), [[each["score"] for each in row] for row in near], atol=1e-6
    )
    assert answer.get_response()["id"] == "mine" and answer.get_response()["model_name"] == "encoder"


def test_pixels_and_files_in_binary_and_in_json_give_the_same(api: triton.InferenceServerClient) -> None:
    expected = api.infer("encoder", [files(JPEG, OTHER)]).as_numpy("embedding")
    made = pixels(JPEG, OTHER)
    for binary in (True, False):
        tensor = triton.InferInput("image", list(made.shape), "UINT8").set_data_from_numpy(made, binary)
        np.testing.assert_array_equal(api.infer("encoder", [tensor]).as_numpy("embedding"), expected)
    texts = np.array([[PHOTO], [b64encode(OTHER).decode()]], np.object_)
    tensor = triton.InferInput("image", [2, 1], "BYTES").set_data_from_numpy(texts, binary_data=False)
    np.testing.assert_array_equal(api.infer("encoder", [tensor]).as_numpy("embedding"), expected)


@pytest.mark.parametrize(
    "tensor",
    [
        request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=pixels(JPEG).tolist()),  # nested
        request(data=[f"data:image/jpeg;base64,{PHOTO}"]),
        request(shape=[1, 1], data=[[PHOTO]]),
    ],
    ids=["nested pixels", "data URI", "nested file"],
)
def test_other_ways_to_write_an_input_give_the_same(client: httpx.Client, tensor: dict[str, Any]) -> None:
    expected = outputs_of(client.post(INFER, json=request()))
    assert outputs_of(client.post(INFER, json=tensor)) == expected


def test_outputs_come_as_asked_for_in_their_order_each_in_json_or_binary(api: triton.InferenceServerClient) -> None:
    wanted = [
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("embedding"),
    ]
    answer = api.infer("encoder", [files(JPEG)], outputs=wanted)
    label, embedding = answer.get_response()["outputs"]
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "BYTES", [1])
    assert label["data"] in (["cat"], ["dog"]) and "data" not in embedding
    assert embedding["parameters"] == {"binary_data_size": 64}
    assert np.linalg.norm(answer.as_numpy("embedding")) == pytest.approx(1, abs=1e-6)


def test_the_gallery_is_searched_only_where_neighbors_are_asked_for(client: httpx.Client) -> None:
    for asked, searched in (
        (request(parameters={"k": 2}, outputs=[{"name": "embedding"}]), False),
        (request(parameters={"k": 2}, outputs=[{"name": "neighbor_ids"}]), True),
        (request(parameters={"k": 2}), True),
        (request(), False),
    ):
        answer = client.post(INFER, json=asked)
        assert ("search;" in answer.headers["server-timing"]) == searched
        assert any("neighbor" in name for name in outputs_of(answer)) == searched


def test_there_are_no_more_neighbors_than_rows(client: httpx.Client) -> None:
    outputs = outputs_of(client.post(INFER, json=request(parameters={"k": 1000})))
    assert outputs["neighbor_ids"]["shape"] == outputs["neighbor_scores"]["shape"] == [1, 3]
    assert sorted(outputs["neighbor_ids"]["data"]) == ["one", "two", "zero"]
    scores = outputs["neighbor_scores"]["data"]
    assert scores == sorted(scores, reverse=True)


def test_as_many_images_as_one_request_may_have(api: triton.InferenceServerClient) -> None:
    made = np.repeat(pixels(JPEG), MAX_INPUTS, axis=0)
    tensor = triton.InferInput("image", list(made.shape), "UINT8").set_data_from_numpy(made)
    assert api.infer("encoder", [tensor]).as_numpy("embedding").shape == (MAX_INPUTS, 16)
    more = files(*[JPEG] * (MAX_INPUTS + 1))
    with pytest.raises(InferenceServerException, match="129 images; send 1 to 128"):
        api.infer("encoder", [more])


def test_versions_are_found_by_their_name(api: triton.InferenceServerClient, seeded_store: Path) -> None:
    version = Manifest.read(seeded_store).model_digest[:12]
    answer = api.infer("encoder", [files(JPEG)], model_version=version)
    assert answer.get_response()["model_version"] == version
    assert api.is_model_ready("encoder", version) and not api.is_model_ready("encoder", "1")
    with pytest.raises(InferenceServerException, match=version):
        api.infer("encoder", [files(JPEG)], model_version="1")


# What is wrong


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (request(name="img"), ("'img'", "'image'")),
        (request(datatype="FP32"), ("'FP32'", "UINT8", "BYTES")),
        (request(shape=[2]), ("1 images in data", "says 2")),
        (request(shape=[0]), ("0 images", "1 to 128")),
        (request(shape=[1, 2]), ("[1, 2]", "[N] or [N, 1]")),
        (request(shape=[]), ("[]",)),
        (request(shape="1"), ("'1'",)),
        (request(shape=[True]), ("a list",)),
        (request(shape=[1.5]), ("a list",)),
        (request(datatype="UINT8", shape=[1, 31, 32, 3]), ("[1, 31, 32, 3]", "[N, 32, 32, 3]")),
        (request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=[1, 2]), ("2 bytes of pixels", "3072")),
        (request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=[256] * 3072), ("0 to 255",)),
        (request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=[-1] * 3072), ("0 to 255",)),
        (request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=[0.5] * 3072), ("0 to 255",)),
        (request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=[[1], 2]), ("0 to 255",)),
        (request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=["x" * 3072]), ("0 to 255",)),
        (request(data="x"), ("data is 'x'", "a list")),
        (request(data=[5]), ("base64",)),
        (request(data=["????"]), ("'????'", "base64")),
        (request(data=["http://127.0.0.1/a.jpg"]), ("a URL",)),
        (request(parameters={"binary_data_output": 1}), ("binary_data_output", "true or false")),
        (request(parameters={"k": -1}), ("k is -1", "1000")),
        (request(parameters={"k": 1001}), ("k is 1001",)),
        (request(parameters={"k": "5"}), ("k is '5'",)),
        (request(parameters={"top_k": 5}), ("'top_k'", "k, binary_data_output")),
        (request(parameters=[]), ("parameters of the request",)),
        (request(outputs=[{"name": "scores"}]), ("'scores'", "embedding")),
        (request(outputs=[{"name": "label"}] * 2), ("twice",)),
        (request(outputs=[{"name": "neighbor_ids"}]), ("without k",)),
        (request(outputs=["label"]), ("outputs is a list", "objects")),
        (request(outputs=[{"name": "label", "parameters": {"classification": 3}}]), ("classification",)),
        (request(outputs=[{"name": "label", "parameters": {"shared_memory_region": "r"}}]), ("shared memory",)),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}, ("data or", "binary_data_size")),
        ({"inputs": []}, ("inputs is a list", "1 at least")),
        ({"inputs": request()["inputs"] * 2}, ("2 inputs; send one",)),
        (request(more=1), ("unknown key 'more'",)),
        (request(id=7), ("id is 7",)),
    ],
    ids=lambda value: json.dumps(value)[:70] if isinstance(value, dict) else "",
)
def test_a_bad_request_is_refused_with_what_is_wrong(
    client: httpx.Client, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    assert_error(client.post(INFER, json=body), 400, *words)


def test_numbers_that_are_none_are_refused(client: httpx.Client) -> None:
    for number in ("NaN", "1e400", "Infinity"):
        body = json.dumps(request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=["@"])).replace('"@"', number)
        assert_error(client.post(INFER, content=body), 400)


def test_a_bad_image_of_several_fails_them_all_and_its_place_is_named(
    client: httpx.Client, api: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException, match="image 2 of 3: unsupported image format 'TIFF'") as refused:
        api.infer("encoder", [files(JPEG, TIFF, JPEG)])
    assert refused.value.status() == "415"
    texts = [PHOTO, b64encode(TIFF).decode()]
    assert_error(client.post(INFER, json=request(shape=[2], data=texts)), 415, "image 2 of 2", "'TIFF'")
    assert_error(client.post(INFER, json=request(shape=[2], data=[PHOTO, "?"])), 400, "image 2 of 2", "base64")


@pytest.mark.parametrize(
    ("size", "behind", "words"),
    [
        (10, b"\x06\0\0\0abc", ("binary_data_size is 10; 7 bytes",)),
        (7, b"\x06\0\0\0abc", ("end within image 1 of 1",)),
        (2, b"\x06\0", ("end within image 1 of 1",)),
        (8, b"\x03\0\0\0abcd", ("1 bytes behind the last image",)),
        (None, b"\x03\0\0\0abc", ("binary_data_size",)),
        ("7", b"\x03\0\0\0abc", ("binary_data_size is '7'",)),
    ],
)
def test_binary_data_that_are_not_as_their_size_says_are_refused(
    client: httpx.Client, size: Any, behind: bytes, words: tuple[str, ...]
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    assert_error(client.post(INFER, content=head + behind, headers=headers), 400, *words)


def test_what_is_too_large_is_refused_with_the_limit(client: httpx.Client, server: Server) -> None:
    numbers = b",".join([b"1"] * (MAX_NUMBERS + 1))
    body = json.dumps(request(datatype="UINT8", shape=[1, SIZE, SIZE, 3], data=["@"])).encode()
    assert_error(client.post(INFER, content=body.replace(b'"@"', numbers)), 413, f"more than {MAX_NUMBERS} numbers")
    lists = b",".join([b"[]"] * (MAX_NUMBERS + 5000))
    assert_error(client.post(INFER, content=body.replace(b'"@"', lists)), 413, "commas")
    assert_error(client.post(INFER, json=request(data=[b64encode(bytes(17 << 20)).decode()])), 413, "17825792 bytes")
    with connect(server) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nhost: akin\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n\r\n"
        connection.sendall(head.encode())
        refused = read_answer(connection)
    assert refused.status == 413 and str(MAX_BODY_BYTES) in refused.json["error"]


def test_a_compressed_body_is_refused(api: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="'gzip'; send it as it is") as refused:
        api.infer("encoder", [files(JPEG)], request_compression_algorithm="gzip")
    assert refused.value.status() == "415"


def test_other_models_methods_and_paths_are_refused(client: httpx.Client) -> None:
    assert_error(client.post("/v2/models/other/infer", json=request()), 404, "'other'", "'encoder'")
    assert_error(client.get("/v2/models/other"), 404, "'encoder'")
    refused = client.get(INFER)
    assert_error(refused, 405, "POST")
    assert refused.headers["allow"] == "POST"
    assert client.post("/v2/repository/models/encoder/unload").status_code == 404


def test_before_it_is_ready_and_with_a_full_queue_it_says_503_and_when_to_come_again(seeded_store: Path) -> None:
    async def ask(service: Service | None) -> dict[str, httpx.Response]:
        front = front_with(service, capacity=0)
        try:
            transport = httpx.ASGITransport(build_app(front))
            async with httpx.AsyncClient(transport=transport, base_url="http://akin") as client:
                paths = ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", MODEL)
                answers = {path: await client.get(path) for path in paths}
                return answers | {INFER: await client.post(INFER, json=request())}
        finally:
            front.close()

    early = asyncio.run(ask(None))
    assert early.pop("/v2/health/live").json() == {"live": True}
    full = asyncio.run(ask(Service(Encoder.load(seeded_store))))
    assert full["/v2/health/ready"].json() == {"ready": True}
    assert full[f"{MODEL}/ready"].json() == {"name": "encoder", "ready": True}
    for refused in early.values():
        assert_error(refused, 503, "loading")
        assert refused.headers["retry-after"] == "1"
    assert_error(full[INFER], 503, "send again")
    assert full[INFER].headers["retry-after"] == "1"


def test_where_reads_are_protected_all_but_health_wants_the_token(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v2", MODEL, f"{MODEL}/ready"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post(INFER, json=request())).status_code == 401
        token = {"authorization": "Bearer secret"}
        assert (await client.post(INFER, json=request(), headers=token)).status_code == 200

    talk(front_with(Service(Encoder.load(seeded_store)), access=Access(b"secret", protect_reads=True)), scenario)
