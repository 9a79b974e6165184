"""What the server serves, from its start on, and its side of `akin deploy`: a newer model in the old one's place.

load ─► golden vectors ─► its gallery ─► swap one reference ─► what was under way ends ─► close the old one
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from handlers.exchange import Front
from handlers.loading import load
from handlers.models import version_of
from handlers.service import Service
from handlers.settings import Settings, Source


class RolloutError(Exception):
    """A step that cannot be taken now."""


class Step(NamedTuple):
    """One model on the way to what is served now."""

    name: str
    store: str
    file: str
    successor: bool  # came in another one's place


class Rollout:
    """How models come and go; the commands that the control socket takes."""

    def __init__(self, settings: Settings, front: Front) -> None:
        self._settings = settings
        self._front = front
        self._one_at_a_time = threading.Lock()
        self._loaded: dict[str, tuple[Step, Service]] = {}  # by name, waiting to be swapped in
        self._steps: list[Step] = []

    def start(self, steps: Sequence[Step] = ()) -> None:
        """Serve what another process has come to in these steps; without any, the models of the settings.

        All of them from one moment on. Raises where one cannot be loaded, and then none is left open.
        """
        steps = steps or [Step(one.name, str(one.store), one.file, False) for one in self._settings.sources]
        with self._one_at_a_time, ExitStack() as opened:
            loaded: list[tuple[str, Service]] = []
            for step in steps:
                service = self._load(step)
                opened.callback(service.close)
                loaded.append((step.name, service))
            retired = self._front.models.put_all(loaded, keep=True)
            self._steps += steps
            opened.pop_all()
        for old in retired:  # the same version came twice
            old.close()

    def close(self) -> None:
        """Close what was loaded and not swapped in; what is served is the front's."""
        while self._loaded:
            self._loaded.popitem()[1][1].close()

    def steps(self, given: dict[str, Any]) -> dict[str, Any]:
        """For a process that joins, or comes back: what it shall serve."""
        with self._one_at_a_time:
            return {"steps": self._steps}

    def load(self, given: dict[str, Any]) -> dict[str, Any]:
        """Open a model beside what is served; nothing changes for anybody yet. Raises, and then nothing is left."""
        with self._one_at_a_time:
            name = given["name"]
            successor = any(served.name == name for served in self._front.models)
            step = Step(name, given["model_store"], given["file"], successor)
            service = self._load(step)
            self._discard(name)
            self._loaded[name] = step, service
        gallery = service.gallery
        return {
            "model": service.encoder.manifest.model_id,
            "version": version_of(service),
            "rows": None if gallery is None else gallery.count,
        }

    def swap(self, given: dict[str, Any]) -> dict[str, Any]:
        """Let the loaded model answer; the one before is closed once the last request that may use it is answered."""
        with self._one_at_a_time:
            name, keep = given["name"], given["keep"]
            if name not in self._loaded:
                raise RolloutError(f"no model is loaded for {name!r}; load one before")
            step, service = self._loaded.pop(name)
            retired = self._front.models.put(name, service, keep)
            self._steps = [one for one in self._steps if keep or one.name != name] + [step]
        for old in retired:
            self._front.under_way.after_these(old.close)
        return {"version": version_of(service), "retired": [version_of(old) for old in retired]}

    def discard(self, given: dict[str, Any]) -> dict[str, Any]:
        """Forget what was loaded: another process could not load it."""
        with self._one_at_a_time:
            self._discard(given["name"])
        return {}

    def _load(self, step: Step) -> Service:
        source = Source(step.name, Path(step.store), step.file)
        return load(self._settings, source, self._front.metrics, self._front.admission.alone, step.successor)

    def _discard(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.pop(name)[1].close()
