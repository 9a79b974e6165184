"""The pages beside the predictions, and what a real server shows too rarely to wait for."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.service import Answer, Options, RequestError, Service
from handlers.together import Steps
from handlers.tokens import Access
from images.decode import ImageError
from index.gallery import Gallery
from tests.server import Server, read_answer
from tests.serving import JPEG, PATH, assert_refused, connect, front_with, samples, talk


def test_an_unknown_page_is_refused_by_naming_those_there_are(client: httpx.Client) -> None:
    assert_refused(client.get("/nope"), 404, "/nope", "POST /predictions/NAME")
    assert_refused(client.post("/healthz"), 405)


def test_health_readiness_and_description(client: httpx.Client, seeded_store: Path) -> None:
    model_id = Manifest.read(seeded_store).model_id
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "model": model_id}
    description = client.get("/").json()
    assert description["models"] == {"encoder": model_id}
    assert description["gallery_rows"] == 3
    assert description["preprocess"]["size"] == 32


def test_metrics_count_stages_statuses_and_rejects(
    client: httpx.Client, server: Server, seeded_store: Path
) -> None:
    name, _, digest = Manifest.read(seeded_store).model_id.partition("@")
    of_model = f'model="{name}",digest="{digest}",provider="CPUExecutionProvider"'
    labels = of_model.split(",")
    before = samples(client.get("/metrics").text)
    for _ in range(3):
        client.post(PATH, params={"k": 1}, content=JPEG)
    client.post(PATH, content=b"noise")
    for garbage in (b"garbage\r\n\r\n", b"GET /" + b"x" * 20_000, b"garbage\r\n\r\n"):
        with connect(server) as connection:
            connection.sendall(garbage)
            assert read_answer(connection).status in (400, 414)
    after = samples(client.get("/metrics").text)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    for stage in ("queue", "decode", "embed", "search", "total"):
        sample = ",".join(sorted([*labels, f'stage="{stage}"']))
        assert grown(f"akin_stage_seconds_count{{{sample}}}") == 3
    assert grown('akin_requests_total{status="200"}') == 3
    assert grown('akin_requests_total{status="415"}') == 1
    rejected = {name: grown(name) for name in after if name.startswith("akin_rejected_total") and grown(name)}
    assert rejected == {
        'akin_rejected_total{reason="malformed"}': 2,
        'akin_rejected_total{reason="headers too large"}': 1,
    }
    assert after["akin_queue_depth"] == after["akin_jobs_in_flight"] == after["akin_queue_wait_seconds"] == 0
    assert after["akin_requests_in_flight"] == 1  # the one that asks
    assert after[f"akin_index_rows{{{','.join(sorted(labels))}}}"] == 3
    info = ",".join(sorted([*labels, 'current="true"', 'name="encoder"']))
    assert after[f"akin_model_info{{{info}}}"] == 1


def test_every_answer_says_how_long_it_took_by_stage_and_under_which_id_the_log_has_it(client: httpx.Client) -> None:
    good = client.post(PATH, params={"k": 1}, content=JPEG)
    stages = dict(part.split(";dur=") for part in good.headers["server-timing"].split(", "))
    assert set(stages) == {"queue", "decode", "embed", "search", "total"}
    total = float(stages.pop("total"))
    assert 0 < sum(map(float, stages.values())) < total
    assert {stage: float(ms) for stage, ms in stages.items() if stage != "queue"} == pytest.approx(
        good.json()["timing_ms"], abs=1e-3
    )
    others = [client.post(PATH, content=b"noise"), client.get("/healthz"), client.get("/nope"), client.get("/index")]
    ids = {answer.headers["x-request-id"] for answer in (good, *others)}
    assert len(ids) == 5
    for other in others:
        assert "total;dur=" in other.headers["server-timing"]


@pytest.mark.parametrize("path", [PATH, "/healthz"])
def test_a_request_id_of_the_client_comes_back_and_nonsense_does_not(client: httpx.Client, path: str) -> None:
    def sent(id: str) -> str:
        return client.post(path, content=JPEG, headers={"x-request-id": id}).headers["x-request-id"]

    assert sent("trace-17/b") == "trace-17/b"
    for nonsense in ("two words", "x" * 65, "", "tab\there"):
        assert sent(nonsense) not in ("", nonsense)


# Inside one process


def test_a_worker_that_does_not_come_back_fails_liveness(seeded_store: Path) -> None:
    gate = threading.Event()

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        stuck = front.admission.submit(gate.wait)
        await asyncio.sleep(0.1)
        assert_refused(await client.get("/healthz"), 503, "a worker has been busy", "started anew")
        gate.set()
        await stuck
        assert (await client.get("/healthz")).status_code == 200

    front = front_with(Service(Encoder.load(seeded_store)))
    front.stuck_after_s = 0.05
    talk(front, scenario)


def test_with_protected_reads_only_health_is_open(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        for path in ("/models", "/metrics", "/index", "/docs", "/v1/models"):
            refused = await client.get(path)
            assert_refused(refused, 401, "token")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert_refused(await client.post(PATH, content=JPEG), 401, "token")
        good = {"authorization": "Bearer secret"}
        assert (await client.post(PATH, content=JPEG, headers=good)).status_code == 200
        assert (await client.get("/models", headers=good)).status_code == 200

    talk(front_with(Service(Encoder.load(seeded_store)), access=Access(b"secret", protect_reads=True)), scenario)


def test_a_second_model_answers_under_its_name_and_has_an_index_of_its_own(
    seeded_store: Path, tmp_path: Path
) -> None:
    encoder = Encoder.load(seeded_store)
    other = replace(encoder, manifest=replace(encoder.manifest, model="other", model_digest="ab" * 32))

    async def scenario(client: httpx.AsyncClient) -> None:
        first = (await client.post(PATH, content=JPEG)).json()
        second = (await client.post("/predictions/b", content=JPEG)).json()
        assert first["embedding"] == second["embedding"]
        assert (first["model"], second["model"]) == (encoder.manifest.model_id, "other@abababababab")
        assert (await client.post("/predictions/b/abababababab", content=JPEG)).json()["model"] == second["model"]
        assert_refused(await client.post("/predictions/b/000000000000", content=JPEG), 404, "abababababab")
        assert_refused(await client.get("/index"), 409, "no gallery")
        assert (await client.put("/models/b/index/one%2F1", content=JPEG)).json()["id"] == "one/1"
        assert (await client.get("/models/b/index")).json()["rows"] == 1
        assert (await client.post("/predictions/b?k=1", content=JPEG)).json()["neighbors"][0]["id"] == "one/1"
        assert_refused(await client.get("/models/third/index"), 404, "'third'")
        served = (await client.get("/models")).json()
        assert served["models"] == {"encoder": encoder.manifest.model_id, "b": "other@abababababab"}
        assert [(one["name"], one["gallery"]) for one in served["served"]] == [("encoder", False), ("b", True)]

    with Gallery.open(tmp_path, other.manifest.model_digest, other.manifest.dimension) as gallery:
        front = front_with(Service(encoder))
        front.models.put("b", Service(other, gallery))
        talk(front, scenario)



def test_before_the_golden_vectors_passed_it_is_alive_but_not_ready() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        for early in (await client.get("/readyz"), await client.post(PATH, content=JPEG)):
            assert_refused(early, 503, "loading")
            assert early.headers["retry-after"] == "1"

    talk(front_with(None), scenario)


def test_a_full_queue_answers_503_with_retry_after_and_counts_it(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post(PATH, content=JPEG)
        assert_refused(refused, 503, "send again")
        assert refused.headers["retry-after"] == "1"
        counted = samples((await client.get("/metrics")).text)
        assert counted['akin_rejected_total{reason="queue full"}'] == 1
        assert counted['akin_requests_total{status="503"}'] == 1

    talk(front_with(Service(Encoder.load(seeded_store)), capacity=0), scenario)


def test_neighbors_on_a_server_without_a_gallery_are_refused(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert_refused(await client.post(PATH, params={"k": 5}, content=JPEG), 409, "send k=0", "--images")
        assert (await client.post(PATH, content=JPEG)).status_code == 200

    talk(front_with(Service(Encoder.load(seeded_store))), scenario)


def test_an_unexpected_error_is_500_with_an_id_under_which_the_log_has_it(
    seeded_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Service):
        def answering(
            self, images: Sequence[bytes], options: Options, timing_ms: dict[str, float] | None = None
        ) -> Steps[list[Answer | ImageError]]:
            raise ZeroDivisionError("a mistake of ours")

    async def scenario(client: httpx.AsyncClient) -> None:
        with caplog.at_level(logging.ERROR, "akin"):
            answer = await client.post(PATH, content=JPEG)
        assert_refused(answer, 500, "internal error")
        assert "mistake" not in answer.text
        request_id = answer.json()["error"].split()[-1]
        assert request_id == answer.headers["x-request-id"] and request_id in caplog.text
        assert "ZeroDivisionError" in caplog.text

    talk(front_with(Broken(Encoder.load(seeded_store))), scenario)


def test_an_unexpected_error_of_a_page_is_logged_once(
    seeded_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError("a mistake of ours")

    async def scenario(client: httpx.AsyncClient) -> None:
        with caplog.at_level(logging.ERROR):
            answer = await client.get("/metrics")  # whoever waits for the application hears of no exception
        assert_refused(answer, 500, "internal error", answer.headers["x-request-id"])
        (record,) = caplog.records
        assert record.exc_info and record.exc_info[0] is ZeroDivisionError

    front = front_with(Service(Encoder.load(seeded_store)))
    front.render_metrics = fail
    talk(front, scenario)


def test_a_refused_request_is_let_go_with_its_answer_and_not_by_the_garbage_collector(seeded_store: Path) -> None:
    refusals: list[weakref.ref[RequestError]] = []

    def remembered(error: RequestError) -> RequestError:
        refusals.append(weakref.ref(error))
        return error

    class Refusing(Service):
        def answering(
            self, images: Sequence[bytes], options: Options, timing_ms: dict[str, float] | None = None
        ) -> Steps[list[Answer | ImageError]]:
            raise remembered(RequestError(400, "no"))

    async def scenario(client: httpx.AsyncClient) -> None:
        assert_refused(await client.post(PATH, content=JPEG), 400, "no")
        while refusals[0]() is not None:  # the worker lets go a moment later
            await asyncio.sleep(0.001)

    gc.disable()
    try:
        talk(front_with(Refusing(Encoder.load(seeded_store))), lambda client: asyncio.wait_for(scenario(client), 20))
    finally:
        gc.enable()
