"""Liveness fails on every front once a worker does not come back, and not before."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from encoder.session import Encoder
from handlers import oip_grpc, oip_proto
from handlers.admission import Admission
from handlers.exchange import Front, Request
from handlers.service import Service
from tests.serving import front_with, talk

Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


@pytest.fixture(params=["workers", "writers"])
def wedged(request: pytest.FixtureRequest, seeded_store: Path) -> Callable[[Scenario, Scenario], Front]:
    """Run one scenario while one of these threads is stuck, and the other once it has come back."""

    def run(stuck: Scenario, well: Scenario) -> Front:
        front, gate = front_with(Service(Encoder.load(seeded_store))), threading.Event()
        front.stuck_after_s, front.writers = 0.05, Admission(1, 8)

        async def scenario(client: httpx.AsyncClient) -> None:
            await well(client)
            job = (front.admission if request.param == "workers" else front.committing).submit(gate.wait)
            await asyncio.sleep(0.1)
            await stuck(client)
            gate.set()
            await job
            await well(client)

        try:
            talk(front, scenario)
        finally:
            front.writers.close()
        return front

    return run


@pytest.mark.parametrize("path", ["/healthz", "/v2/health/live"])
def test_over_http(wedged: Callable[[Scenario, Scenario], Front], path: str) -> None:
    async def stuck(client: httpx.AsyncClient) -> None:
        answer = await client.get(path)
        assert answer.status_code == 503
        assert "a worker has been busy with the same work for" in answer.text and "started anew" in answer.text
        assert answer.headers["retry-after"]
        assert (await client.get("/v2/health/ready")).status_code == 200  # it is loaded all the same

    async def well(client: httpx.AsyncClient) -> None:
        assert (await client.get(path)).status_code == 200

    wedged(stuck, well)


def test_over_grpc(seeded_store: Path) -> None:
    front, gate = front_with(Service(Encoder.load(seeded_store))), threading.Event()
    front.stuck_after_s = 0.05

    async def live() -> bool:
        answer = await oip_grpc.ANSWERS["ServerLive"](front, Request({}, {}, "mine"))
        return bool(oip_proto.ServerLiveResponse.FromString(answer).live)

    async def scenario() -> list[bool]:
        heard = [await live()]
        job = front.admission.submit(gate.wait)
        await asyncio.sleep(0.1)
        heard.append(await live())
        gate.set()
        await job
        return [*heard, await live()]

    try:
        assert asyncio.run(scenario()) == [True, False, True]
    finally:
        front.admission.close()
