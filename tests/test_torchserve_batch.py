"""Batches of TorchServe requests through the handler itself: one embedding call, a status for each request."""

import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from encoder.session import Encoder
from export.archive import Archive, write_archive
from handlers.service import Options, RequestError, Service
from handlers.torchserve.batch import answer_batch
from handlers.torchserve.inputs import Inputs
from tests.server import ROOT
from tests.serving import JPEG, OTHER, SEEDED, vector_of

# TorchServe leaves files that it reads to the garbage collector: its version here, its metrics below.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    from ts.context import Context, RequestProcessor
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

    from handlers.torchserve_handler import EncoderHandler

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
METRICS = ROOT / "handlers/torchserve/metrics.yaml"


class Embeds:
    """Counts the calls of the encoder."""

    def __init__(self) -> None:
        self.count = 0

    def observe(self, stage: str, seconds: float) -> None:
        self.count += stage == "embed"


def test_requests_that_ask_alike_are_embedded_together(seeded_store: Path) -> None:
    embeds = Embeds()
    service = Service(Encoder.load(seeded_store), observe=embeds.observe)
    alike, other = Options(), Options(fields=frozenset({"label"}))
    requests = [Inputs([JPEG], alike), Inputs([OTHER], other), Inputs([OTHER, JPEG], alike)]
    first, second, third = answer_batch(service, requests)
    assert embeds.count == 2
    np.testing.assert_allclose(json.loads(first.payload)["embedding"], vector_of(service.encoder, JPEG), atol=1e-6)
    assert json.loads(second.payload).keys() == {"label"}
    np.testing.assert_allclose(
        [answer["embedding"] for answer in json.loads(third.payload)],
        [vector_of(service.encoder, OTHER), vector_of(service.encoder, JPEG)],
        atol=1e-6,
    )


def test_what_is_wrong_with_one_request_does_not_touch_the_others(seeded_store: Path) -> None:
    service = Service(Encoder.load(seeded_store))
    requests = [
        Inputs([b"noise"], Options()),
        RequestError(400, "k is 'x'"),
        Inputs([JPEG], Options.parse("1", None)),  # there is no gallery
        Inputs([JPEG, b"noise"], Options()),
        Inputs([JPEG], Options()),
    ]
    replies = answer_batch(service, requests)
    assert [reply.status for reply in replies] == [415, 400, 409, 200, 200]
    assert json.loads(replies[1].payload) == {"status": 400, "error": "k is 'x'"}
    assert [answer["status"] for answer in json.loads(replies[3].payload)] == [200, 415]


def test_a_mistake_of_ours_is_500_and_in_the_log_but_not_in_the_answer(
    seeded_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(Encoder.load(seeded_store))
    monkeypatch.setattr(service, "answer_many", lambda *_: 1 // 0)
    (reply,) = answer_batch(service, [Inputs([JPEG], Options())])
    assert reply.status == 500
    assert b"ZeroDivisionError" not in reply.payload and "ZeroDivisionError" in caplog.text


# The handler, with TorchServe's own context


@pytest.fixture
def unpacked(seeded_store: Path, tmp_path: Path) -> Path:
    """An archive as TorchServe unpacks it."""
    archive = write_archive(Archive(model_store=str(seeded_store), out=str(tmp_path / "encoder.mar")))
    zipfile.ZipFile(archive).extractall(tmp_path / "unpacked")
    return tmp_path / "unpacked"


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """The handler silences TorchServe's log: in a worker for good, here until the test ends."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def context_for(unpacked: Path, config: dict[str, str], metrics_config: Path = METRICS) -> Context:
    metrics = MetricsCacheYamlImpl(str(metrics_config))
    metrics.initialize_cache()
    return Context("encoder", str(unpacked), {}, 8, None, "0.12.0", metrics=metrics, model_yaml_config=config)


def test_a_batch_gets_a_status_and_a_content_type_for_each(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AKIN_GALLERY", str(tmp_path / "gallery"))
    context = context_for(unpacked, {"gallery": "/nowhere/to/be/made"})
    handler = EncoderHandler()
    handler.initialize(context)
    data = [{"body": bytearray(SEEDED[1])}, {"body": bytearray(b"noise")}, {"body": bytearray(JPEG)}]
    context.request_processor = [
        RequestProcessor({"akin-k": "1"}), RequestProcessor({}), RequestProcessor({"akin-k": "-1"}),
    ]  # fmt: skip
    with caplog.at_level(logging.INFO, "ts.metrics.caching_metric"):
        payloads = handler.handle(data, context)
    assert [context.get_response_status(number)[0] for number in range(3)] == [200, 415, 400]
    assert {context.get_response_content_type(number) for number in range(3)} == {"application/json"}
    assert json.loads(payloads[0])["neighbors"][0]["id"] == "one"
    assert "akin_stage_ms.Milliseconds:" in caplog.text and "stage:search" in caplog.text


def test_without_a_gallery_in_the_configuration_there_is_none(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AKIN_GALLERY", raising=False)
    monkeypatch.chdir(tmp_path)
    context = context_for(unpacked, {})
    handler = EncoderHandler()
    handler.initialize(context)
    context.request_processor = [RequestProcessor({"akin-k": "1"}), RequestProcessor({})]
    handler.handle([{"body": bytearray(JPEG)}] * 2, context)
    assert [context.get_response_status(number)[0] for number in range(2)] == [409, 200]


def test_the_gallery_may_stand_in_the_archive_and_other_metrics_files_will_do(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AKIN_GALLERY", raising=False)
    other_metrics = tmp_path / "metrics.yaml"
    other_metrics.write_text("model_metrics: {gauge: [{name: HandlerTime, unit: ms, dimensions: [Level]}]}")
    context = context_for(unpacked, {"gallery": str(tmp_path / "gallery")}, other_metrics)
    handler = EncoderHandler()
    handler.initialize(context)
    context.request_processor = [RequestProcessor({"akin-k": "9"})]
    (payload,) = handler.handle([{"body": bytearray(JPEG)}], context)
    assert len(json.loads(payload)["neighbors"]) == 3


def test_an_encoder_that_does_not_pass_is_not_served_and_says_why(
    unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unpacked / "model_store/encoder.int8.onnx").write_bytes(b"")
    with pytest.raises(Exception, match="sha256"):
        EncoderHandler().initialize(context_for(unpacked, {}))
    assert capsys.readouterr().err.startswith("akin: ")
