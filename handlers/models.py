"""The models that are served: by name, and under each name one version that answers and others that may.

A version is the first 12 hex of the model's digest, as answers show it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from handlers.service import RequestError, Service


class Served(NamedTuple):
    """A model as it is served."""

    name: str
    version: str
    service: Service
    current: bool  # answers where no version is named


class _Versions(NamedTuple):
    """What a name stands for. Never changed, only replaced: whoever holds one sees one state."""

    current: str
    services: dict[str, Service]


class Models:
    """Read by any thread at any time; changed by one thread at a time."""

    def __init__(self, default: str) -> None:
        """default: the name that answers where none is given."""
        self.default = default
        self._by_name: dict[str, _Versions] = {}

    @property
    def ready(self) -> bool:
        """Whether they are loaded. They come all at once, so that no name is unknown only because it still loads."""
        return bool(self._by_name)

    def service(self, name: str | None = None, version: str | None = None) -> Service:
        """The service of a model; raises `RequestError` 503 before they are ready, 404 where there is no such one."""
        name = self.default if name is None else name
        versions = self._by_name.get(name)
        if versions is None:
            if not self.ready:
                raise RequestError(503, "the encoder is still loading; /readyz tells when to send again")
            raise RequestError(404, f"no model {name[:40]!r} here; there is {' and '.join(map(repr, self._by_name))}")
        service = versions.services.get(versions.current if version is None else version)
        if service is None:
            there = " and ".join(map(repr, versions.services))
            raise RequestError(404, f"no version {str(version)[:40]!r} of model {name!r} here; there is {there}")
        return service

    def find(self, text: str) -> Service | None:
        """The service of what a client calls a model: a name, a name@version, or the id that answers show."""
        name, _, version = text.partition("@")
        versions = self._by_name.get(name)
        if versions is not None:
            return versions.services.get(version or versions.current)
        return next((one.service for one in self if one.service.encoder.manifest.model_id == text), None)

    @property
    def names(self) -> tuple[str, ...]:
        """What `find` knows, shortest first: every name, then every id."""
        return (*self._by_name, *(one.service.encoder.manifest.model_id for one in self))

    def __iter__(self) -> Iterator[Served]:
        for name, versions in self._by_name.items():
            for version, service in versions.services.items():
                yield Served(name, version, service, version == versions.current)

    def put(self, name: str, service: Service, keep: bool = False) -> list[Service]:
        """Let `service` answer for `name` from now on; the services that no longer answer to anything.

        keep: the versions that are there stay, and answer to those who name them.
        """
        return self.put_all([(name, service)], keep)

    def put_all(self, named: Sequence[tuple[str, Service]], keep: bool = False) -> list[Service]:
        """`put` for several in their order: nobody sees one of them without the others."""
        before = [served.service for served in self] + [service for _, service in named]
        after = dict(self._by_name)
        for name, service in named:
            version = version_of(service)
            kept = after[name].services if keep and name in after else {}
            after[name] = _Versions(version, kept | {version: service})
        self._by_name = after
        there = [served.service for served in self]
        return [old for old in before if old not in there]

    def clear(self) -> list[Service]:
        """Serve nothing any more; what was served."""
        services = [served.service for served in self]
        self._by_name = {}
        return services


def version_of(service: Service) -> str:
    """What answers show behind the @."""
    return service.encoder.manifest.model_digest[:12]
