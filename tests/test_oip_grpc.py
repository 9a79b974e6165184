"""The Open Inference Protocol over gRPC: the real client against a real server, in good order and under load."""

import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from encoder.manifest import Manifest
from handlers import oip_grpc, oip_proto
from handlers.native import serve
from handlers.oip_grpc import SERVICE
from handlers.openai import MAX_BODY_BYTES
from handlers.settings import Settings
from images.decode import decode
from images.spec import PreprocessSpec
from tests.pictures import encode, scene
from tests.server import ROOT, Server, deploy, running_server
from tests.serving import JPEG, OTHER, PATH
from tests.test_manners import LARGE, REJECTED, metrics, until
from tests.tiny_encoder import write_tiny_encoder

SIZE = 32  # of the tiny encoder
TIFF = encode(scene(20, 20), "TIFF")
Code = grpc.StatusCode


def grpc_address(server: Server) -> str:
    found = re.search(r"^  grpc     (\S+)$", server.log, re.MULTILINE)
    assert found is not None, server.log
    return found[1]


@contextmanager
def serving(store: Path, folder: Path, *arguments: str) -> Iterator[tuple[Server, grpc.Channel]]:
    """A server that speaks gRPC too, and a bare channel to it."""
    with (
        running_server(store, folder, ["--grpc-port", "0", *arguments]) as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
    ):
        yield server, channel


@pytest.fixture(scope="module")
def pair(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, grpc.Channel]]:
    """One process for all tests that do not need their own."""
    with serving(seeded_store, tmp_path_factory.mktemp("grpc"), "--access-log") as pair:
        yield pair
        server, _ = pair
        assert server.process.poll() is None and "Traceback" not in server.log
        assert f"POST '/{SERVICE}/ModelInfer' 200" in server.log


@pytest.fixture
def server(pair: tuple[Server, grpc.Channel]) -> Server:
    return pair[0]


@pytest.fixture
def channel(pair: tuple[Server, grpc.Channel]) -> grpc.Channel:
    return pair[1]


@pytest.fixture
def api(server: Server) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client."""
    with triton.InferenceServerClient(grpc_address(server)) as api:
        yield api


def files(*photos: bytes) -> triton.InferInput:
    """Image files as a tensor."""
    return triton.InferInput("image", [len(photos)], "BYTES").set_data_from_numpy(np.array(photos, np.object_))


def tensor(**given: Any) -> dict[str, Any]:
    """A good input but for what is given, its elements in `contents`."""
    return {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [JPEG]}} | given


def message(**given: Any) -> bytes:
    """A good ModelInferRequest but for what is given; `k` is its parameter."""
    k = given.pop("k", None)
    made = service_pb2.ModelInferRequest(**{"model_name": "encoder", "inputs": [tensor()]} | given)
    if k is not None:
        made.parameters["k"].CopyFrom(k)
    return bytes(made.SerializeToString())


def photos(*given: bytes) -> bytes:
    return message(inputs=[tensor(shape=[len(given)], contents={"bytes_contents": given})])


def infer_on(channel: grpc.Channel) -> Any:
    """ModelInfer, from bytes to bytes."""
    return channel.unary_unary(f"/{SERVICE}/ModelInfer")


def refused(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, timeout=30, **options)
    return error.value


def fields_of(described: DescriptorProto) -> dict[str, Any]:
    """A message as its wire format has it."""
    return {
        "fields": {f.name: (f.number, f.label, f.type, f.type_name.rpartition(".")[2]) for f in described.field},
        "oneofs": [one.name for one in described.oneof_decl],
        "map": described.options.map_entry,
        "within": {one.name: fields_of(one) for one in described.nested_type},
    }


# What is here


def test_the_messages_are_those_of_the_real_client() -> None:
    theirs = FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    known = {one.name: fields_of(one) for one in theirs.message_type}
    ours = oip_proto.described(oip_proto.FILE.read_text())
    assert ours.package == theirs.package
    assert len(ours.message_type) == 16
    for one in ours.message_type:
        assert fields_of(one) == known[one.name]


def test_the_methods_served_are_those_of_the_proto_file() -> None:
    text = oip_proto.FILE.read_text()
    declared = re.findall(r"^  rpc (\w+)\((\w+)Request\) returns \((\w+)Response\) \{\}", text, re.MULTILINE)
    assert {name for name, _, _ in declared} == set(oip_grpc.ANSWERS)
    assert all(name == asked == answered for name, asked, answered in declared)


def test_the_real_client_finds_server_and_model_alive_and_ready(
    api: triton.InferenceServerClient, seeded_store: Path
) -> None:
    version = Manifest.read(seeded_store).model_digest[:12]
    assert api.is_server_live() and api.is_server_ready()
    assert api.is_model_ready("encoder") and api.is_model_ready("encoder", version)
    assert not api.is_model_ready("other") and not api.is_model_ready("encoder", "1")
    assert api.get_server_metadata().name == "akin"
    (listed,) = api.get_model_repository_index().models
    assert (listed.name, listed.version, listed.state) == ("encoder", version, "READY")


def test_the_metadata_are_those_of_rest(api: triton.InferenceServerClient, server: Server) -> None:
    metadata = api.get_model_metadata("encoder", as_json=True)
    expected = httpx.get(f"{server.url}/v2/models/encoder").json()
    for tensor in (*expected["inputs"], *expected["outputs"]):
        tensor["shape"] = [str(extent) for extent in tensor["shape"]]  # as JSON made of protobuf has int64
    assert metadata == expected


# Images in, tensors out


def test_the_real_client_gets_what_predictions_give(api: triton.InferenceServerClient, server: Server) -> None:
    ask = {"params": {"k": 2}, "timeout": 30}
    expected = [httpx.post(server.url + PATH, content=photo, **ask).json() for photo in (JPEG, OTHER)]
    answer = api.infer("encoder", [files(JPEG, OTHER)], parameters={"k": 2}, request_id="mine")
    for name in ("embedding", "logits"):
        np.testing.assert_allclose(answer.as_numpy(name), [one[name] for one in expected], atol=1e-6)
    assert answer.as_numpy("label").tolist() == [one["label"].encode() for one in expected]
    near = [one["neighbors"] for one in expected]
    assert answer.as_numpy("neighbor_ids").tolist() == [[each["id"].encode() for each in row] for row in near]
    scores = [[each["score"] for each in row] for row in near]
    np.testing.assert_allclose(answer.as_numpy("neighbor_scores"), scores, atol=1e-6)
    assert (answer.get_response().id, answer.get_response().model_name) == ("mine", "encoder")


def test_pixels_and_files_raw_and_one_by_one_give_the_same(
    api: triton.InferenceServerClient, channel: grpc.Channel
) -> None:
    expected = api.infer("encoder", [files(JPEG)]).as_numpy("embedding")
    pixels = decode(JPEG, PreprocessSpec(size=SIZE))[None]
    raw = triton.InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels)
    np.testing.assert_array_equal(api.infer("encoder", [raw]).as_numpy("embedding"), expected)
    numbers = tensor(datatype="UINT8", shape=pixels.shape, contents={"uint_contents": pixels.ravel().tolist()})
    for inputs in ([numbers], [tensor()], [tensor(shape=[1, 1])]):
        answer = service_pb2.ModelInferResponse.FromString(infer_on(channel)(message(inputs=inputs), timeout=30))
        np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), expected[0])


def test_outputs_come_as_asked_for_in_their_order(api: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in ("label", "neighbor_ids")]
    answer = api.infer("encoder", [files(JPEG)], outputs=wanted, parameters={"k": 1000})
    assert [one.name for one in answer.get_response().outputs] == ["label", "neighbor_ids"]
    assert answer.as_numpy("neighbor_ids").shape == (1, 3)  # as many as there are rows
    assert answer.as_numpy("label").shape == (1,)


def test_versions_are_found_by_their_name(api: triton.InferenceServerClient, seeded_store: Path) -> None:
    version = Manifest.read(seeded_store).model_digest[:12]
    answer = api.infer("encoder", [files(JPEG)], model_version=version)
    assert answer.get_response().model_version == version
    with pytest.raises(InferenceServerException, match=version) as error:
        api.infer("encoder", [files(JPEG)], model_version="1")
    assert error.value.status() == "StatusCode.NOT_FOUND"


def test_an_answer_tells_its_timing_and_the_id_that_was_sent(channel: grpc.Channel) -> None:
    _, call = infer_on(channel).with_call(message(), metadata=(("x-request-id", "mine-7"),), timeout=30)
    trailer = dict(call.trailing_metadata())
    assert trailer["x-request-id"] == "mine-7"
    assert re.fullmatch(r"queue;dur=\S+, decode;dur=\S+, embed;dur=\S+, total;dur=\S+", trailer["server-timing"])


# What is wrong


PARAMETER = service_pb2.InferParameter


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"\xff\xff", Code.INVALID_ARGUMENT, ("no ModelInferRequest",)),
        (b"", Code.NOT_FOUND, ("no model ''", "'encoder'")),
        (message(model_name="other"), Code.NOT_FOUND, ("'other'", "'encoder'")),
        (message(inputs=[]), Code.INVALID_ARGUMENT, ("0 inputs; send one",)),
        (message(inputs=[tensor(), tensor()]), Code.INVALID_ARGUMENT, ("2 inputs; send one",)),
        (message(inputs=[tensor(name="x")]), Code.INVALID_ARGUMENT, ("'x'", "'image'")),
        (message(inputs=[tensor(datatype="FP32")]), Code.INVALID_ARGUMENT, ("'FP32'", "UINT8")),
        (message(inputs=[tensor(shape=[129])]), Code.INVALID_ARGUMENT, ("129 images", "1 to 128")),
        (message(inputs=[tensor(shape=[-1])]), Code.INVALID_ARGUMENT, ("-1 images",)),
        (message(inputs=[tensor(shape=[2])]), Code.INVALID_ARGUMENT, ("1 images in bytes_contents", "says 2")),
        (message(inputs=[tensor(contents={})]), Code.INVALID_ARGUMENT, ("0 images in bytes_contents",)),
        (
            message(inputs=[tensor(datatype="UINT8", shape=[1, 8, 8, 3])]),
            Code.INVALID_ARGUMENT,
            ("[1, 8, 8, 3]", "[N, 32, 32, 3]"),
        ),
        (
            message(inputs=[tensor(datatype="UINT8", shape=[1, SIZE, SIZE, 3], contents={"uint_contents": [256]})]),
            Code.INVALID_ARGUMENT,
            ("0 to 255",),
        ),
        (message(raw_input_contents=[b"\x09\0\0\0x"]), Code.INVALID_ARGUMENT, ("end within image 1 of 1",)),
        (message(raw_input_contents=[b"", b""]), Code.INVALID_ARGUMENT, ("2 raw contents",)),
        (message(k=PARAMETER(int64_param=1001)), Code.INVALID_ARGUMENT, ("k is 1001",)),
        (message(k=PARAMETER(double_param=float("nan"))), Code.INVALID_ARGUMENT, ("k is null",)),
        (message(k=PARAMETER(string_param="5")), Code.INVALID_ARGUMENT, ("k is '5'",)),
        (message(k=PARAMETER()), Code.INVALID_ARGUMENT, ("k is null",)),
        (message(outputs=[{"name": "scores"}]), Code.INVALID_ARGUMENT, ("'scores'", "embedding")),
        (photos(JPEG, TIFF), Code.INVALID_ARGUMENT, ("image 2 of 2", "'TIFF'")),
        (photos(bytes(17 << 20)), Code.INVALID_ARGUMENT, ("17825792 bytes", "16777216")),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_bad_call_is_refused_with_what_is_wrong(
    channel: grpc.Channel, body: bytes, code: grpc.StatusCode, words: tuple[str, ...]
) -> None:
    error = refused(infer_on(channel), body)
    assert error.code() == code, error.details()
    for word in words:
        assert word in error.details()
    assert "x-request-id" in dict(error.trailing_metadata())


def test_what_grpc_itself_refuses_leaves_the_server_well(
    api: triton.InferenceServerClient, channel: grpc.Channel
) -> None:
    over = refused(infer_on(channel), bytes(MAX_BODY_BYTES + 1))
    assert over.code() == Code.RESOURCE_EXHAUSTED and str(MAX_BODY_BYTES) in over.details()
    # Decompressed, a few bytes could be any number.
    assert refused(infer_on(channel), message(), compression=grpc.Compression.Gzip).code() == Code.UNIMPLEMENTED
    assert refused(channel.unary_unary(f"/{SERVICE}/ModelConfig"), b"").code() == Code.UNIMPLEMENTED
    empty = refused(channel.stream_unary(f"/{SERVICE}/ModelInfer"), iter([]))
    assert empty.code() == Code.INVALID_ARGUMENT and "no message" in empty.details()
    assert len(api.infer("encoder", [files(JPEG)]).as_numpy("label")) == 1


def test_where_reads_are_protected_all_but_health_wants_the_token(seeded_store: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("token").write_text("secret")
    with (
        serving(seeded_store, tmp_path, "--token-file", "token", "--protect-reads") as (server, _),
        triton.InferenceServerClient(grpc_address(server)) as api,
    ):
        assert api.is_server_live() and api.is_server_ready()
        for call in (api.get_server_metadata, lambda **more: api.infer("encoder", [files(JPEG)], **more)):
            for headers in (None, {"authorization": "Bearer public"}):
                with pytest.raises(InferenceServerException, match="Authorization: Bearer") as error:
                    call(headers=headers)
                assert error.value.status() == "StatusCode.UNAUTHENTICATED"
            call(headers={"authorization": "Bearer secret"})


# Under load


def test_a_call_that_is_cancelled_while_it_waits_is_not_computed(seeded_store: Path, tmp_path: Path) -> None:
    with serving(seeded_store, tmp_path, "--threads", "1", "--max-wait-ms", "60000") as (server, channel):
        infer = infer_on(channel)
        busy = infer.future(photos(*[LARGE] * 4), timeout=60)
        until(server, "akin_jobs_in_flight", 1)
        waiting = [infer.future(message(), timeout=60) for _ in range(5)]
        until(server, "akin_jobs_in_flight", 6)
        assert metrics(server)["akin_requests_in_flight"] == 7  # and this one: so `akin deploy` waits for them
        for call in waiting:
            assert call.cancel()
        until(server, REJECTED % "client gone", 5)
        assert service_pb2.ModelInferResponse.FromString(busy.result()).outputs[0].shape == [4, 16]
        infer(message(), timeout=30)
        found = metrics(server)
        decoded = [name for name in found if name.startswith("akin_stage_seconds_count") and "decode" in name]
        assert [found[name] for name in decoded] == [5]
        assert found['akin_requests_total{status="200"}'] == 2


def test_more_calls_than_may_wait_get_resource_exhausted_with_the_time_to_come_again(
    seeded_store: Path, tmp_path: Path
) -> None:
    patient = ("--threads", "1", "--queue", "1", "--max-wait-ms", "60000")
    with serving(seeded_store, tmp_path, *patient) as (server, channel):
        infer = infer_on(channel)
        accepted = []
        for number, body in ((1, photos(*[LARGE] * 4)), (2, message())):  # one runs, one waits
            accepted.append(infer.future(body, timeout=60))
            until(server, "akin_jobs_in_flight", number)
        full = refused(infer, message())
        assert full.code() == Code.RESOURCE_EXHAUSTED
        assert "1 requests wait already" in full.details() and "send again" in full.details()
        assert int(dict(full.trailing_metadata())["retry-after"]) >= 1
        assert all(len(call.result()) > 100 for call in accepted)
        assert metrics(server)['akin_requests_total{status="503"}'] == metrics(server)[REJECTED % "queue full"] == 1


def test_sigterm_lets_a_call_under_way_end_and_takes_no_other(seeded_store: Path, tmp_path: Path) -> None:
    with serving(seeded_store, tmp_path, "--threads", "1") as (server, channel):
        busy = infer_on(channel).future(photos(*[LARGE] * 4), timeout=60)
        until(server, "akin_jobs_in_flight", 1)
        assert server.stop() == 0
        assert service_pb2.ModelInferResponse.FromString(busy.result()).outputs[0].shape == [4, 16]
        assert refused(infer_on(channel), message()).code() == Code.UNAVAILABLE
        assert "Traceback" not in server.log


@pytest.mark.parametrize("scenario", ["slow", "kept"])
def test_slow_calls_are_few_and_end_and_a_refused_one_does_not_keep_its_message(
    scenario: str, seeded_store: Path
) -> None:
    command = [sys.executable, "-m", "tests.grpc_alone", scenario, str(seeded_store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_while_calls_pour_in_a_newer_model_takes_over_and_not_one_is_lost(seeded_store: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    write_tiny_encoder(newer, dimension=24)
    with serving(seeded_store, tmp_path) as (server, channel):
        stop = threading.Event()
        seen: Counter[int] = Counter()  # by dimension

        def ask() -> None:
            while not stop.is_set():
                answer = service_pb2.ModelInferResponse.FromString(infer_on(channel)(message(), timeout=30))
                seen[answer.outputs[0].shape[1]] += 1

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                for store in (newer, seeded_store, newer):
                    done = deploy(server, store)
                    assert done.returncode == 0, done.stderr
            finally:
                stop.set()
            for each in asking:
                each.result()  # raises what was refused
        assert set(seen) == {16, 24}
        assert "Traceback" not in server.log


# Its port


def test_several_processes_share_the_port(seeded_store: Path, tmp_path: Path) -> None:
    with serving(seeded_store, tmp_path, "--processes", "2") as (server, _):
        for _ in range(40):  # each on a connection of its own, which the kernel gives to one of them
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(grpc_address(server), options) as channel:
                assert len(infer_on(channel)(message(), timeout=30)) > 100
        found = metrics(server)
        answered = [found[f'akin_requests_total{{process="{process}",status="200"}}'] for process in (1, 2)]
        assert sum(answered) == 40 and min(answered) > 0
        assert server.stop() == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_port_that_another_server_has_is_refused(
    server: Server, seeded_store: Path, tmp_path: Path, processes: str
) -> None:
    port = grpc_address(server).rpartition(":")[2]
    command = [sys.executable, "-m", "handlers.native", "--model-store", str(seeded_store), "--port", "0"]
    command += ["--grpc-port", port, "--processes", processes]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"akin: cannot listen on 127.0.0.1:{port} (Address already in use); choose another --grpc-port\n"
    )


def test_without_grpcio_a_grpc_port_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("handlers.native.find_spec", lambda name: None)
    assert serve(Settings(port=0, grpc_port=0)) == 1
    assert "needs the package grpcio" in capsys.readouterr().err


def test_without_a_grpc_port_grpc_is_not_imported() -> None:
    command = "import sys, handlers.native; print('grpc' in sys.modules, 'google.protobuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
