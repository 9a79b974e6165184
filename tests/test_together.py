"""Several requests' work as one job: what is shared, what is each one's own, and what nobody pays for."""

import asyncio
import gc
import threading
import weakref
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.batching import Batching
from encoder.session import Embedded, Encoder
from handlers.admission import Costs
from handlers.service import Service
from handlers.together import MAX_IMAGES, Pixels, Rows, Run, Steps, by_itself, together
from index.gallery import Gallery
from tests.pictures import encode, scene
from tests.serving import JPEG, OTHER, PATH, SEEDED, assert_refused, front_with, samples, talk, vector_of


class Device:
    """An encoder that says of each image its first number, and keeps the size of every run."""

    def __init__(self, fails_on: int | None = None) -> None:
        self.runs: list[int] = []
        self._fails_on = fails_on

    def run(self, images: np.ndarray) -> Rows:
        self.runs.append(len(images))
        if self._fails_on in images:
            raise MemoryError(f"no room for {self._fails_on}")
        values = images.reshape(len(images), -1)[:, :1].astype(np.float32)
        return Rows(values, -values, float(len(self.runs)))


def images(*values: int) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


def asking(run: Run, *values: int) -> Callable[[], Steps[list[float]]]:
    """Work that wants rows for images of these values, and ends in what it was given."""

    def steps() -> Steps[list[float]]:
        vectors, logits, _ = yield Pixels(images(*values), run)
        assert np.array_equal(logits, -vectors)
        return [float(value) for value in vectors[:, 0]]

    return steps


def ends(works: list[Callable[[], Steps[object]]]) -> list[object]:
    """The result or the error of each."""
    return [outcome.result if outcome.error is None else outcome.error for outcome in together(works)]


def done_at_once() -> Steps[str]:
    return "done"
    yield


def refused() -> Steps[str]:
    raise ValueError("no image")
    yield


def test_work_by_itself_gets_its_rows_and_gives_its_result() -> None:
    device = Device()
    assert by_itself(asking(device.run, 3, 4)()) == [3, 4]
    assert device.runs == [2]
    assert by_itself(done_at_once()) == "done"
    with pytest.raises(ValueError, match="no image"):
        by_itself(refused())
    with pytest.raises(MemoryError):
        by_itself(asking(Device(fails_on=3).run, 3)())


def test_several_share_one_run_and_each_gets_its_own_rows() -> None:
    device = Device()
    works = [asking(device.run, 1), asking(device.run, 2, 3, 4), asking(device.run, 5)]
    assert ends(works) == [[1], [2, 3, 4], [5]]
    assert device.runs == [5]


def test_who_shares_a_run_is_told_how_long_all_of_it_took() -> None:
    device, told = Device(), []

    def steps() -> Steps[None]:
        told.append((yield Pixels(images(1), device.run)).ms)

    together([steps, steps])
    assert told == [1.0, 1.0]


def test_those_who_want_different_encoders_have_a_run_each() -> None:
    one, other = Device(), Device()
    works = [asking(one.run, 1), asking(other.run, 2), asking(one.run, 3)]
    assert ends(works) == [[1], [2], [3]]
    assert (one.runs, other.runs) == ([2], [1])


def test_one_who_is_refused_or_needs_no_encoder_harms_nobody() -> None:
    device = Device()
    first, error, last, end = ends([asking(device.run, 1), refused, asking(device.run, 2), done_at_once])
    assert (first, last, end) == ([1], [2], "done")
    assert isinstance(error, ValueError)
    assert device.runs == [2]


def test_one_who_fails_behind_the_run_harms_nobody() -> None:
    device = Device()

    def failing() -> Steps[None]:
        yield Pixels(images(7), device.run)
        raise KeyError("its search failed")

    first, error = ends([asking(device.run, 1), failing])
    assert first == [1]
    assert isinstance(error, KeyError)


def test_where_a_shared_run_fails_each_has_one_of_its_own_and_its_own_error() -> None:
    device = Device(fails_on=2)
    first, error, last = ends([asking(device.run, 1), asking(device.run, 2), asking(device.run, 3)])
    assert (first, last) == ([1], [3])
    assert isinstance(error, MemoryError)
    assert device.runs == [3, 1, 1, 1]


def test_a_shared_run_that_fails_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ends([asking(Device(fails_on=2).run, 1, 2)] * 2)
    assert "2 requests share no run: MemoryError: no room for 2" in caplog.text


def test_a_run_that_is_shared_has_so_many_images_at_most_and_one_request_may_have_more() -> None:
    device = Device()
    sizes = [1, MAX_IMAGES - 1, 1, MAX_IMAGES + 8, 2]
    found = ends([asking(device.run, *range(size)) for size in sizes])
    assert found == [list(range(size)) for size in sizes]
    assert sorted(device.runs) == sorted([MAX_IMAGES, 1, MAX_IMAGES + 8, 2])


def test_the_seconds_of_each_are_its_own_and_its_images_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # the only clock there is
    monkeypatch.setattr("handlers.admission.perf_counter", lambda: now[0])

    def run(images: np.ndarray) -> Rows:
        now[0] += 8.0
        return Rows(np.zeros((len(images), 1), np.float32), np.zeros((len(images), 1), np.float32), 8000.0)

    def taking(before_s: float, count: int, behind_s: float) -> Steps[None]:
        now[0] += before_s
        yield Pixels(images(*range(count)), run)
        now[0] += behind_s

    works = [partial(taking, 1.0, 1, 0.5), partial(taking, 10.0, 3, 0.25)]
    assert [outcome.seconds for outcome in together(works)] == pytest.approx([1.5 + 2, 10.25 + 6])


def test_work_that_stops_twice_is_a_mistake_that_shows() -> None:
    device = Device()

    def twice() -> Steps[None]:
        yield Pixels(images(1), device.run)
        yield Pixels(images(1), device.run)

    with pytest.raises(RuntimeError, match="once"):
        by_itself(twice())
    outcome, other = ends([twice, asking(device.run, 2)])
    assert isinstance(outcome, RuntimeError)
    assert other == [2]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_an_error_keeps_nothing_of_the_others(at_the_end: bool) -> None:
    class Watched(np.ndarray):
        pass

    device = Device()
    pictures = images(2).view(Watched)
    held = weakref.ref(pictures)

    def others(pictures: np.ndarray) -> Steps[None]:
        yield Pixels(pictures, device.run)

    def failing() -> Steps[None]:
        if at_the_end:
            yield Pixels(images(1), device.run)
        raise ValueError("refused")

    gc.disable()
    try:
        works = [partial(others, pictures), failing]
        del pictures
        error = together(works)[1].error
        del works
        assert isinstance(error, ValueError) and held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_an_error_lets_go_of_what_its_request_held(at_the_end: bool) -> None:
    class Upload:
        pass

    device, upload = Device(), Upload()
    held = weakref.ref(upload)

    def failing(upload: Upload) -> Steps[None]:
        if at_the_end:
            yield Pixels(images(1), device.run)
        raise ValueError("refused")

    gc.disable()
    try:
        outcomes = together([lambda upload=upload: failing(upload), asking(device.run, 2)])
        assert isinstance(outcomes[0].error, ValueError)
        del upload, outcomes
        assert held() is None
    finally:
        gc.enable()


@pytest.fixture
def costs_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the first requests of each kind and size."""
    monkeypatch.setattr(Costs, "knows", lambda *_: True)


class Counting:
    """An encoder that keeps the size of every batch."""

    def __init__(self, encoder: Encoder) -> None:
        self.manifest, self.provider, self.coming = encoder.manifest, encoder.provider, encoder.coming
        self.batches: list[int] = []
        self._encoder = encoder

    def embed(self, batch: np.ndarray, alone: bool = False) -> Embedded:
        self.batches.append(len(batch))
        return self._encoder.embed(batch)


@pytest.mark.usefixtures("costs_are_known")
def test_requests_that_wait_share_a_run_whatever_they_ask_for_and_a_bad_one_fails_by_itself(
    seeded_store: Path,
) -> None:
    encoder = Encoder.load(seeded_store)
    counting = Counting(encoder)
    front = front_with(Service(counting))
    gate = threading.Event()

    async def scenario(client: httpx.AsyncClient) -> None:
        busy = front.admission.submit(gate.wait)
        text = b64encode(JPEG).decode()
        sent = [
            asyncio.create_task(request)
            for request in (
                client.post(PATH, content=JPEG),
                client.post(PATH, content=JPEG[:300]),
                client.post(PATH, content=OTHER, headers={"accept": "application/octet-stream"}),
                client.post(PATH, files=[("data", JPEG), ("data", OTHER)]),
                client.post("/v1/embeddings", json={"model": "encoder", "input": text}),
                client.post(
                    "/v2/models/encoder/infer",
                    json={"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}]},
                ),
                client.post(PATH, params={"k": 3}, content=JPEG),  # there is no gallery
            )
        ]
        while front.admission.depth < len(sent):
            await asyncio.sleep(0.001)
        gate.set()
        await busy
        raw, damaged, floats, form, openai, infer, neighbors = await asyncio.gather(*sent)
        jpeg, other = vector_of(encoder, JPEG), vector_of(encoder, OTHER)
        same = partial(np.testing.assert_allclose, atol=1e-6)
        same(raw.json()["embedding"], jpeg)
        assert_refused(damaged, 400)
        same(np.frombuffer(floats.content, "<f4"), other)
        same([answer["embedding"] for answer in form.json()], [jpeg, other])
        same(openai.json()["data"][0]["embedding"], jpeg)
        same(infer.json()["outputs"][0]["data"], jpeg)
        assert_refused(neighbors, 409, "gallery")
        assert counting.batches == [6]
        counted = samples((await client.get("/metrics")).text).items()
        of_embed = [
            value for name, value in counted if name.startswith("akin_stage_seconds_count") and "embed" in name
        ]
        assert of_embed == [5]  # one a request

    talk(front, scenario)


@pytest.mark.usefixtures("costs_are_known")
def test_searches_by_an_image_share_runs_too_and_those_by_a_vector_wait_for_nobody(
    seeded_store: Path, tmp_path: Path
) -> None:
    encoder = Encoder.load(seeded_store)
    counting = Counting(encoder)
    manifest, vectors = encoder.manifest, np.stack([vector_of(encoder, photo) for photo in SEEDED])
    with Gallery.open(tmp_path, manifest.model_digest, manifest.dimension) as gallery:
        gallery.add(["zero", "one", "two"], vectors, [None] * 3)
        front = front_with(Service(counting, gallery))
        gate = threading.Event()

        async def scenario(client: httpx.AsyncClient) -> None:
            busy = front.admission.submit(gate.wait)
            by_vector = {"vector": vectors[1].tolist(), "k": 1}
            sent = [
                asyncio.create_task(request)
                for request in (
                    client.post("/index/search", params={"k": 1}, content=SEEDED[2]),
                    client.post(PATH, params={"k": 1}, content=SEEDED[0]),
                    client.post("/index/search", json=by_vector),
                    client.post("/index/search", params={"k": 1}, content=SEEDED[1]),
                )
            ]
            while front.admission.depth < len(sent):
                await asyncio.sleep(0.001)
            gate.set()
            await busy
            found = [answer.json()["neighbors"][0]["id"] for answer in await asyncio.gather(*sent)]
            assert found == ["two", "zero", "one", "one"]
            assert counting.batches == [2, 1]

        talk(front, scenario)


@pytest.mark.usefixtures("costs_are_known")
def test_behind_dynamic_batching_each_gets_its_own_as_well(seeded_store: Path) -> None:
    encoder = Encoder.load(seeded_store)
    batching = Batching(encoder, max_batch=4, deadline_ms=1)
    front = front_with(Service(batching))
    gate = threading.Event()
    photos = [JPEG, b"no image", *SEEDED, OTHER, JPEG]

    async def scenario(client: httpx.AsyncClient) -> None:
        busy = front.admission.submit(gate.wait)
        sent = [asyncio.create_task(client.post(PATH, content=photo)) for photo in photos]
        while front.admission.depth < len(sent):
            await asyncio.sleep(0.001)
        gate.set()
        await busy
        for answer, photo in zip(await asyncio.gather(*sent), photos, strict=True):
            if photo == b"no image":
                assert_refused(answer, 415)
            else:
                np.testing.assert_allclose(answer.json()["embedding"], vector_of(encoder, photo), atol=1e-5)

    talk(front, scenario)
    batching.close()


def test_under_load_everyone_gets_the_vector_of_his_own_picture(client: httpx.Client, seeded_store: Path) -> None:
    encoder = Encoder.load(seeded_store)
    pictures = [encode(scene(40 + seed, 50, seed)) for seed in range(16)]
    vectors = [vector_of(encoder, picture) for picture in pictures]

    def ask(number: int) -> np.ndarray:
        answer = client.post(PATH, content=pictures[number], params={"fields": "embedding"})
        return np.array(answer.json()["embedding"], np.float32)

    numbers = [number % len(pictures) for number in range(480)]
    with ThreadPoolExecutor(24) as pool:
        for number, vector in zip(numbers, pool.map(ask, numbers), strict=True):
            np.testing.assert_allclose(vector, vectors[number], atol=1e-6)


@pytest.mark.usefixtures("costs_are_known")
def test_requests_for_two_models_share_a_turn_and_each_gets_its_own_models_answer(seeded_store: Path) -> None:
    encoder = Encoder.load(seeded_store)
    one, other = Counting(encoder), Counting(encoder)
    front = front_with(Service(one))
    front.models.put("other", Service(other))
    gate = threading.Event()

    async def scenario(client: httpx.AsyncClient) -> None:
        busy = front.admission.submit(gate.wait)
        paths = [PATH, "/predictions/other", PATH, "/predictions/other"]
        sent = [
            asyncio.create_task(client.post(path, content=photo))
            for path, photo in zip(paths, [JPEG, JPEG, *SEEDED[:2]], strict=True)
        ]
        while front.admission.depth < len(sent):
            await asyncio.sleep(0.001)
        gate.set()
        await busy
        for answer, photo in zip(await asyncio.gather(*sent), [JPEG, JPEG, *SEEDED[:2]], strict=True):
            np.testing.assert_allclose(answer.json()["embedding"], vector_of(encoder, photo), atol=1e-6)
        assert (one.batches, other.batches) == ([2], [2])

    talk(front, scenario)
