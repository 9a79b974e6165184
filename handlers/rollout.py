"""The server's side of `akin deploy`: a newer model beside the one that answers, then in its place.

load ─► golden vectors ─► its gallery ─► swap one reference ─► what was under way ends ─► close the old one
"""

import threading
from pathlib import Path
from typing import Any

from handlers.exchange import Front
from handlers.loading import load
from handlers.models import version_of
from handlers.service import Service
from handlers.settings import Settings, Source


class RolloutError(Exception):
    """A step that cannot be taken now."""


class Rollout:
    """The commands that the control socket takes."""

    def __init__(self, settings: Settings, front: Front) -> None:
        self._settings = settings
        self._front = front
        self._one_at_a_time = threading.Lock()
        self._loaded: dict[str, Service] = {}  # by name, waiting to be swapped in

    def load(self, given: dict[str, Any]) -> dict[str, Any]:
        """Open a model beside what is served; nothing changes for anybody yet. Raises, and then nothing is left."""
        source = Source(given["name"], Path(given["model_store"]), given["file"])
        with self._one_at_a_time:
            successor = any(served.name == source.name for served in self._front.models)
            service = load(self._settings, source, self._front.metrics, self._front.admission.alone, successor)
            self._discard(source.name)
            self._loaded[source.name] = service
        gallery = service.gallery
        return {
            "model": service.encoder.manifest.model_id,
            "version": version_of(service),
            "rows": None if gallery is None else gallery.count,
        }

    def swap(self, given: dict[str, Any]) -> dict[str, Any]:
        """Let the loaded model answer; the one before is closed once the last request that may use it is answered."""
        with self._one_at_a_time:
            service = self._loaded.pop(given["name"], None)
            if service is None:
                raise RolloutError(f"no model is loaded for {given['name']!r}; load one before")
            retired = self._front.models.put(given["name"], service, keep=given["keep"])
        for old in retired:
            self._front.under_way.after_these(old.close)
        return {"version": version_of(service), "retired": [version_of(old) for old in retired]}

    def discard(self, given: dict[str, Any]) -> dict[str, Any]:
        """Forget what was loaded: another process could not load it."""
        with self._one_at_a_time:
            self._discard(given["name"])
        return {}

    def _discard(self, name: str) -> None:
        if (service := self._loaded.pop(name, None)) is not None:
            service.close()
