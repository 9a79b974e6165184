"""The knobs of the native server, and the command line that turns them."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from encoder.machine import cores
from encoder.session import OPENVINO_PROVIDER, PROVIDERS
from handlers import browser
from handlers.logs import FORMATS
from handlers.tokens import VARIABLE
from index.errors import RowRefused
from index.open import DEFAULT_GALLERY, GALLERIES, MILVUS, own_gallery, parse_bytes

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Source:
    """Where a model is read from."""

    name: str  # what it is called in paths
    store: Path
    file: str  # FILE.json is its manifest


@dataclass(frozen=True)
class Settings:
    """The knobs of the server."""

    model_store: Path = Path("model_store")
    name: str = "encoder"
    also: tuple[str, ...] = ()  # more models: NAME of the same store, or NAME=STORE
    gallery: Path | None = None  # None: the default one, or that of `images`
    index: str | None = None  # in place of `gallery`: a folder, or milvus://host:port
    images: Path | None = None  # embedded into a gallery of its own before serving
    ram: int | None = None  # bytes that the search of a large gallery may take; None: half of the machine's
    factory: str | None = None  # how a large gallery is searched, in FAISS's words; None: by size and memory
    thumbnails: bool | None = None  # kept of the images that are added; None: where there are `images`
    token_file: Path | None = None  # what writes need; None: AKIN_TOKEN, or nothing
    open_writes: bool = False  # without a token, from other machines too
    protect_reads: bool = False  # the token is needed for everything but health
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    grpc_port: int | None = None  # of the Open Inference Protocol; None: not served
    processes: int = 1
    threads: int | None = None  # workers of each process; None: the cores, shared out
    idle_threads: int | None = None  # cores that a request may use while it is alone; None: the process's share
    queue: int = 1024  # requests that may wait for a worker
    max_wait_ms: int = 500  # of work that may wait before a request
    connections: int = 1000
    require_provider: str | None = None  # the execution provider that must run the model; None: the fastest there is
    max_batch: int | None = None  # images of several requests in one call of the model; None: 32 on a GPU, else 1
    batch_wait_ms: float = 2.0  # how long one may be held for others that are on their way
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    log: str = "text"
    access_log: bool = False  # a line for every request
    open: bool | None = None  # the page, in a browser; None: with `images`, where someone looks
    process: int = 0  # which of `processes` this is

    @property
    def sources(self) -> tuple[Source, ...]:
        """The models to serve, the default one first."""
        more = []
        for text in self.also:
            name, _, store = text.partition("=")
            more.append(Source(name, Path(store), "encoder") if store else Source(name, self.model_store, name))
        return (Source(self.name, self.model_store, self.name), *more)

    @property
    def where(self) -> str | Path:
        """Where the default model's gallery lies, a folder or the address of a server."""
        if self.index is not None:
            return self.index if self.index.startswith(MILVUS) else Path(self.index)
        if self.gallery is not None or self.images is None:
            return self.gallery or DEFAULT_GALLERY
        return own_gallery(self.images)

    @property
    def thumbnails_folder(self) -> Path:
        """Beside the gallery; where that is another machine's, below var/."""
        if isinstance(self.where, Path):
            return self.where
        return Path("var/thumbnails") / sha256(self.where.encode()).hexdigest()[:8]

    def gallery_of(self, name: str, version: str) -> Path:
        """Where the gallery of another model or version lies."""
        return GALLERIES / f"{name}-{version}"

    @property
    def keeps_thumbnails(self) -> bool:
        return self.images is not None if self.thumbnails is None else self.thumbnails

    def url(self, port: int) -> str:
        """Where a client on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def opens(self) -> bool:
        """Whether the page opens in a browser once it is there."""
        return self.images is not None and browser.someone_looks() if self.open is None else self.open

    @property
    def workers(self) -> int:
        """Threads of each process."""
        return self.threads or max(1, cores() // self.processes)

    @property
    def cores_for_one(self) -> int:
        """Threads that one request may use while it is alone."""
        return self.idle_threads or max(1, cores() // self.processes)

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        parser = argparse.ArgumentParser(
            prog="akin serve",
            description="Serve embeddings, logits, labels and neighbours over HTTP.",
        )
        shown = " (default: %(default)s)"

        models = parser.add_argument_group("models").add_argument
        models("--model-store", type=Path, default=cls.model_store, help="folder of the artifacts" + shown)
        models("--name", default=cls.name, help="the model: NAME.json in the model store" + shown)
        models("--also", action="append", default=[], metavar="NAME[=STORE]", help="another model beside it")
        models("--require-provider", choices=(*PROVIDERS, OPENVINO_PROVIDER), metavar="NAME", help=_providers())
        models("--max-batch", type=_whole(1, 1024), help="images a call (default: 32 on a GPU, else 1)")
        waiting = "held at most so long for it" + shown
        models("--batch-wait-ms", type=_number(0, 1000), default=cls.batch_wait_ms, help=waiting)

        index = parser.add_argument_group("index")
        add = index.add_argument
        add("--images", type=Path, help="search among these: folder, .zip, .tar.gz, .npy or STL-10")
        place = index.add_mutually_exclusive_group()
        place.add_argument("--gallery", type=Path, help=f"folder of the gallery (default: {DEFAULT_GALLERY}, seeded)")
        place.add_argument("--index", metavar="WHERE", help="the gallery as a folder or milvus://host:port")
        add("--ram", type=_size, metavar="2GB", help="memory for the search of a large gallery (default: half)")
        add("--factory", help="how to search a large gallery, such as HNSW32,SQ8 (default: by size and memory)")
        kept = "keep small pictures of the images that are added (default: with --images)"
        add("--thumbnails", action=argparse.BooleanOptionalAction, default=None, help=kept)

        access = parser.add_argument_group("who may").add_argument
        access("--token-file", type=Path, help=f"file of the token that writes need (default: ${VARIABLE}, or none)")
        access("--open-writes", action="store_true", help="let other machines write without a token")
        access("--protect-reads", action="store_true", help="want the token for everything but health")

        server = parser.add_argument_group("server").add_argument
        server("--host", default=cls.host, help="address to listen on" + shown)
        server("--port", type=_whole(0, 65535), default=cls.port, help="0 takes a free one" + shown)
        server("--grpc-port", type=_whole(0, 65535), help="Open Inference Protocol over gRPC (default: not served)")
        server("--processes", type=_whole(1, 256), default=cls.processes, help="on one port" + shown)
        server("--threads", type=_whole(1, 1024), help="workers a process (default: the cores)")
        alone = "threads that a request may use while it is alone (default: the cores)"
        server("--idle-threads", type=_whole(1, 1024), help=alone)
        server("--log", choices=FORMATS, default=cls.log, help="form of the log" + shown)
        server("--access-log", action="store_true", help="a line for every request")
        opened = "the page, in a browser (default: with --images, in a terminal with a screen)"
        server("--open", action=argparse.BooleanOptionalAction, default=None, help=opened)
        server("--process", type=int, default=0, help=argparse.SUPPRESS)

        limits = parser.add_argument_group("limits").add_argument
        limits("--queue", type=_whole(1, 100_000), default=cls.queue, help="requests that may wait" + shown)
        waiting = "work that may wait before a request; beyond it 503" + shown
        limits("--max-wait-ms", type=_whole(1, 3_600_000), default=cls.max_wait_ms, help=waiting)
        limits("--connections", type=_whole(1, 1_000_000), default=cls.connections, help="open at once" + shown)
        seconds = _number(0.1, 3600)
        limits("--header-seconds", type=seconds, default=cls.header_seconds, help="for a request's head" + shown)
        limits("--body-seconds", type=seconds, default=cls.body_seconds, help="for its body, if it is small" + shown)
        chosen = vars(parser.parse_args(argv))
        return cls(**chosen | {"also": tuple(chosen["also"])})

    def arguments(self, **changed: object) -> list[str]:
        """The command line of these settings, with some of them changed."""
        words: list[str] = []
        for field in fields(self):
            value = changed.get(field.name, getattr(self, field.name))
            flag = f"--{field.name.replace('_', '-')}"
            if field.name == "also":
                words += [word for text in self.also for word in ("--also", text)]
            elif field.name in ("thumbnails", "open") and value is False:
                words.append(f"--no-{field.name}")
            elif value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [flag, os.fspath(value) if isinstance(value, Path) else str(value)]
        return words


def _providers() -> str:
    return f"do not fall back: {', '.join(PROVIDERS)} or {OPENVINO_PROVIDER}"


def _size(text: str) -> int:
    """An argparse type: an amount of memory."""
    try:
        return parse_bytes(text)
    except RowRefused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        return _within(int(text), low, high)

    parse.__name__ = "whole number"  # what argparse calls it in "invalid ... value"
    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def parse(text: str) -> float:
        return _within(float(text), low, high)

    parse.__name__ = "number"
    return parse


def _within(number: Number, low: float, high: float) -> Number:
    if not low <= number <= high:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{number} is not within {low} to {high}")
    return number
