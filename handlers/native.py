"""The native front: predictions on a plain ASGI path, everything else on Starlette, no torch.

    python -m handlers.native --port 8080        # or: akin serve
    curl -T photo.jpg 'http://127.0.0.1:8080/predictions/encoder?k=5'
    curl -T photo.jpg 'http://127.0.0.1:8080/index/cats/1.jpg?label=cat'

Reads model_store/ (never writes there) and the live gallery in var/, which it seeds at first start.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING

import uvicorn

from encoder.golden import GoldenMismatch
from encoder.manifest import ManifestError
from encoder.session import ArtifactError
from handlers import browser, logs, processes
from handlers.admission import Admission
from handlers.app import build_app
from handlers.control import Control, ControlError, ask, path_of, paths_of
from handlers.door import Guard, Server, lack_of_files
from handlers.exchange import Front
from handlers.metrics import Metrics
from handlers.models import Models
from handlers.predictions import PREFIX
from handlers.rollout import Rollout, Step
from handlers.settings import Settings
from handlers.tokens import VARIABLE, Access, TokenError, read_token
from handlers.underway import UnderWay
from handlers.wire import Limits, wire
from images.sources import SourceError
from index.errors import GalleryError

if TYPE_CHECKING:
    from handlers.oip_grpc import GrpcServer

log = logging.getLogger("akin")

# What a user can put right; anything else is our mistake and gets its traceback.
STARTUP_ERRORS = (ManifestError, ArtifactError, GoldenMismatch, SourceError, GalleryError, TokenError, OSError)
WRITER_THREADS = 4  # rows are committed one transaction at a time; these wait for their turn and for the disk
DRAIN_SECONDS = 10  # how long Ctrl-C waits for requests under way


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM, then finish what is under way. Returns the exit code."""
    logs.configure(settings.log, settings.access_log)
    try:
        token = read_token(settings.token_file)
    except TokenError as error:
        return _fail(str(error))
    if settings.protect_reads and token is None:
        return _fail(f"--protect-reads wants a token to ask for; give one with --token-file or {VARIABLE}")
    if settings.grpc_port is not None and find_spec("grpc") is None:
        return _fail("--grpc-port needs the package grpcio, which is not installed here; run `make setup`")
    if lacking := lack_of_files(settings.connections * (1 if settings.grpc_port is None else 2)):
        return _fail(f"{lacking}, or choose fewer --connections")
    try:
        if settings.processes > 1 and not settings.process:
            listener = _reserve(settings.host, settings.port)
        else:
            listener = _bind(settings.host, settings.port, shared=settings.process > 0)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        return _fail(f"cannot listen on {address} ({error.strerror}); choose another --port")
    if settings.grpc_port is not None and not settings.process:  # of several, the parent has reserved it
        try:
            reserved = _reserve(settings.host, settings.grpc_port)  # gRPC binds the port itself
        except OSError as error:
            address = f"{settings.host}:{settings.grpc_port}"
            return _fail(f"cannot listen on {address} ({error.strerror}); choose another --grpc-port")
        settings = replace(settings, grpc_port=reserved.getsockname()[1])
    if settings.processes > 1 and not settings.process:
        return processes.supervise(settings, listener)
    if settings.process:
        processes.end_with_parent()
    address, port = listener.getsockname()[:2]
    access = Access(token, not (settings.open_writes or _is_loopback(address)), settings.protect_reads)
    front = _front(settings, access, port)
    guard = Guard(settings.connections, front.metrics.reject)
    server = _Server(_config(settings, front), guard, _grpc_server(settings, front, address))
    rollout = Rollout(settings, front)
    control = Control(
        path_of(port, settings.process),
        {
            "steps": rollout.steps,
            "load": rollout.load,
            "swap": rollout.swap,
            "discard": rollout.discard,
            "ready": lambda given: {"ready": server.listening.is_set() and front.models.ready},
            "wedged": lambda given: {"reason": front.wedged()},
            "describe": lambda given: {"text": _describe(settings, front, port)},
            "metrics": lambda given: {"text": front.metrics.render().decode()},
        },
    )
    threading.Thread(target=control.serve_forever, name="control", daemon=True).start()
    failures: list[Exception] = []
    steps = _steps_of_others(settings, port)

    def bring_up() -> None:
        try:
            rollout.start(steps)
            if not settings.process:  # of several, the parent speaks
                server.listening.wait()  # on all its ports: whoever hears that it is ready can come
                print(_describe(settings, front, port), flush=True)
                if settings.opens:
                    browser.show(settings.url(port))
        except Exception as error:
            failures.append(error)
            server.should_exit = True

    # uvicorn has handlers of its own while it runs. These stand before, and after: it raises the signal that
    # ended it once more, which must not kill us then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    if steps:
        bring_up()  # the others answer meanwhile: no connection comes here before it can be served
    else:
        # Beside the event loop: /healthz and /readyz answer from the start, and Ctrl-C works while it loads.
        threading.Thread(target=bring_up, daemon=True).start()
    if not (steps and server.should_exit):
        server.run(sockets=[listener])
    control.close()
    rollout.close()
    front.close()
    if failures:
        if not isinstance(failures[0], STARTUP_ERRORS):
            log.error("startup failed", exc_info=failures[0])
        return _fail(str(failures[0]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return serve(Settings.from_arguments(argv))


class _Server(Server):
    """The HTTP server, and beside it gRPC's where there is one: they start, drain and end together."""

    def __init__(self, config: uvicorn.Config, guard: Guard, grpc: "GrpcServer | None") -> None:
        super().__init__(config, guard)
        self.listening = threading.Event()
        self._grpc = grpc

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is not None:
            await self._grpc.start()
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is None:
            await super().shutdown(sockets)
            return
        draining = asyncio.ensure_future(self._grpc.stop(DRAIN_SECONDS))
        await super().shutdown(sockets)
        while not (draining.done() or self.force_exit):
            await asyncio.wait((draining,), timeout=0.1)
        await self._grpc.stop(0)
        await draining


def _grpc_server(settings: Settings, front: Front, address: str) -> "GrpcServer | None":
    if settings.grpc_port is None:
        return None
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core writes a line for every call that a client gets wrong
    from handlers.oip_grpc import GrpcServer  # here alone: gRPC takes 0.1 s to import

    return GrpcServer(front, address, settings.grpc_port, settings.connections)


def _front(settings: Settings, access: Access, port: int) -> Front:
    admission = Admission(settings.workers, settings.queue, settings.max_wait_ms / 1e3)
    models, under_way = Models(settings.name), UnderWay()
    metrics = Metrics(admission, models, lambda: under_way.count)
    render = metrics.render
    if settings.process:
        render = partial(processes.merged_metrics, port, settings.process, metrics.render)
    return Front(
        models,
        admission,
        metrics,
        access,
        writers=Admission(WRITER_THREADS, settings.queue),
        access_log=logs.access_log(),
        under_way=under_way,
        render_metrics=render,
    )


def _config(settings: Settings, front: Front) -> uvicorn.Config:
    limits = Limits(header_seconds=settings.header_seconds, body_seconds=settings.body_seconds)
    return uvicorn.Config(
        build_app(front),
        loop="uvloop",
        http=wire(limits, front.metrics.reject),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,  # longer than the 60 s of common proxies, so that they close first
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _steps_of_others(settings: Settings, port: int) -> list[Step]:
    """What the other processes of the port have come to serve; none where this one is the first."""
    for path in paths_of(port) if settings.process else ():
        with suppress(ControlError):  # the socket of one that was killed
            if steps := ask(path, "steps")["steps"]:
                return [Step(*step) for step in steps]
    return []


def _bind(host: str, port: int, shared: bool) -> socket.socket:
    """A socket bound to the address, which does not listen yet. shared: with others that were bound so."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:  # each process has a queue of its own on the port, filled evenly by the kernel
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _reserve(host: str, port: int) -> socket.socket:
    """What holds a port that others are to bind, here or in other processes; it never listens."""
    reserved = _bind(host, port, shared=False)
    # Shared only now: had it been before, a port that another server shares would have been joined, not refused.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def _describe(settings: Settings, front: Front, port: int) -> str:
    """What it says once it is ready."""
    url = settings.url(port)
    service = front.service()
    encoder = service.encoder
    rows = service.gallery.count if service.gallery else 0
    alike = f"{settings.processes} processes of " if settings.processes > 1 else ""
    add = f"akin index add {settings.images}" if settings.images is not None else "akin index add FOLDER"
    grpc = f"  grpc     {url.rpartition(':')[0].removeprefix('http://')}:{settings.grpc_port}\n"
    return (
        f"akin serves {encoder.manifest.model_id} at {url}\n"
        f"  encoder  {encoder.artifact.precision} ({encoder.artifact.quantization}) on {encoder.provider},"
        f" {len(encoder.manifest.golden)} golden vectors agree\n"
        f"  gallery  {rows} images in {settings.where}; more with {add}\n"
        f"  writes   {front.access}\n"
        f"  workers  {alike}{settings.workers} threads, at most {settings.max_wait_ms} ms of work waiting\n"
        f"{grpc if settings.grpc_port is not None else ''}"
        f"  look     {url}/\n"
        f"  try      curl -T photo.jpg '{url}{PREFIX}{settings.name}?k=5'\n"
        f"  read     {url}/docs   stop with Ctrl-C"
    )


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def _fail(reason: str) -> int:
    print(f"akin: {reason}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
