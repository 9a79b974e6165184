"""The pages beside the predictions, and what a real server shows too rarely to wait for."""

import asyncio
import gc
import logging
import re
import weakref
from pathlib import Path

import httpx
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.service import Answer, Options, RequestError, Service
from tests.serving import JPEG, PATH, assert_refused, front_with, samples, talk


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


def test_metrics_count_stages_statuses_and_rejects(client: httpx.Client) -> None:
    before = samples(client.get("/metrics").text)
    for _ in range(3):
        client.post(PATH, params={"k": 1}, content=JPEG)
    client.post(PATH, content=b"noise")
    after = samples(client.get("/metrics").text)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    for stage in ("decode", "embed", "search", "total"):
        assert grown(f'akin_stage_seconds_count{{stage="{stage}"}}') == 3
    assert grown('akin_requests_total{status="200"}') == 3
    assert grown('akin_requests_total{status="415"}') == 1
    assert grown("akin_rejected_total") == 0
    assert after["akin_queue_depth"] == 0


def test_the_documentation_shows_the_paths_that_are_served_in_front_of_it(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    openai = {"/v1/embeddings", "/v1/models", "/v1/models/{name}"}
    index = {"/index", "/index/{id}", "/index/search", "/index/bulk", "/thumbnails/{id}"}
    assert set(schema["paths"]) == {"/predictions/{name}", "/", "/healthz", "/readyz", "/metrics"} | openai | index
    documented = {entry["name"] for entry in schema["paths"]["/predictions/{name}"]["post"]["parameters"]}
    assert documented == {"name", "k", "fields", "akin-k", "akin-fields"}
    assert "swagger" in client.get("/docs").text


# Inside one process


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
        assert counted["akin_rejected_total"] == 1
        assert counted['akin_requests_total{status="503"}'] == 1

    talk(front_with(Service(Encoder.load(seeded_store)), capacity=0), scenario)


def test_neighbors_on_a_server_without_a_gallery_are_refused(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert_refused(await client.post(PATH, params={"k": 5}, content=JPEG), 409, "send k=0")
        assert (await client.post(PATH, content=JPEG)).status_code == 200

    talk(front_with(Service(Encoder.load(seeded_store))), scenario)


def test_an_unexpected_error_is_500_with_an_id_under_which_the_log_has_it(
    seeded_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Service):
        def answer(self, image: bytes, options: Options) -> None:
            raise ZeroDivisionError("a mistake of ours")

    async def scenario(client: httpx.AsyncClient) -> None:
        with caplog.at_level(logging.ERROR, "akin"):
            answer = await client.post(PATH, content=JPEG)
        assert_refused(answer, 500, "internal error")
        assert "mistake" not in answer.text
        request_id = answer.json()["error"].split()[-1]
        assert re.fullmatch("[0-9a-f]{12}", request_id) and request_id in caplog.text
        assert "ZeroDivisionError" in caplog.text

    talk(front_with(Broken(Encoder.load(seeded_store))), scenario)


def test_a_refused_request_is_let_go_with_its_answer_and_not_by_the_garbage_collector(seeded_store: Path) -> None:
    refusals: list[weakref.ref[RequestError]] = []

    def remembered(error: RequestError) -> RequestError:
        refusals.append(weakref.ref(error))
        return error

    class Refusing(Service):
        def answer(self, image: bytes, options: Options) -> Answer:
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
