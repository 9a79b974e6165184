"""Models come all at once, and what does not come to be served is closed."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from encoder.session import ArtifactError, Encoder
from handlers import rollout
from handlers.exchange import Front
from handlers.rollout import Rollout, Step
from handlers.service import Service
from handlers.settings import Settings, Source
from tests.serving import JPEG, front_with, talk

TWO = Settings(also=("second=elsewhere",))


class Loaded(Service):
    """A service that tells whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


class Loader:
    """In place of `load`: a model of its own for each store, and none for a broken one."""

    def __init__(self, store: Path, front: Front) -> None:
        self._encoder = Encoder.load(store)
        self._front = front
        self.services: list[Loaded] = []
        self.early: list[int] = []  # what clients got while the second model was loading

    def __call__(self, settings: Settings, source: Source, *others: Any) -> Service:
        if source.store == Path("broken"):
            raise ArtifactError("it is broken")
        if source.name == "second":
            talk(self._front, self._ask)
        digest = sha256(str(source.store).encode()).hexdigest()
        manifest = replace(self._encoder.manifest, model_digest=digest)
        self.services.append(Loaded(replace(self._encoder, manifest=manifest)))
        return self.services[-1]

    async def _ask(self, client: httpx.AsyncClient) -> None:
        for path in ("/readyz", "/v2/health/ready", "/v2/models/encoder/ready", "/models/second/index"):
            self.early.append((await client.get(path)).status_code)
        self.early.append((await client.post("/predictions/second", content=JPEG)).status_code)


@pytest.fixture
def front() -> Front:
    return front_with(None)


@pytest.fixture
def loader(seeded_store: Path, front: Front, monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader(seeded_store, front)
    monkeypatch.setattr(rollout, "load", loader)
    return loader


def test_while_one_of_them_loads_every_model_is_still_loading_and_the_server_is_not_ready(
    front: Front, loader: Loader
) -> None:
    Rollout(TWO, front).start()
    assert loader.early == [503] * 5
    assert front.models.ready
    assert [front.service(), front.service("second")] == loader.services


def test_where_one_cannot_be_loaded_the_others_are_closed_and_none_is_served(front: Front, loader: Loader) -> None:
    changing = Rollout(Settings(also=("second=elsewhere", "third=broken")), front)
    with pytest.raises(ArtifactError, match="broken"):
        changing.start()
    assert [service.closed for service in loader.services] == [True, True]
    assert not front.models.ready
    assert changing.steps({}) == {"steps": []}


def test_a_model_that_is_named_twice_is_open_once(front: Front, loader: Loader) -> None:
    Rollout(Settings(also=("second=elsewhere", "second=elsewhere")), front).start()
    assert [service.closed for service in loader.services] == [False, True, False]
    assert front.service("second") is loader.services[2]


def test_a_process_that_joins_serves_the_steps_of_the_others(front: Front, loader: Loader) -> None:
    steps = [Step("encoder", "old", "encoder", False), Step("encoder", "new", "encoder", True)]
    changing = Rollout(TWO, front)
    changing.start(steps)
    assert changing.steps({}) == {"steps": steps}
    assert front.service() is loader.services[1]
    assert [served.service for served in front.models] == loader.services


def test_what_was_loaded_and_never_swapped_in_is_closed_with_the_server(front: Front, loader: Loader) -> None:
    changing = Rollout(Settings(), front)
    changing.start()
    changing.load({"name": "encoder", "model_store": "newer", "file": "encoder"})
    changing.close()
    assert [service.closed for service in loader.services] == [False, True]
