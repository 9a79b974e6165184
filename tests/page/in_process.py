"""A server inside this process, for states that no command line brings about."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from encoder.session import Encoder
from handlers.app import build_app
from handlers.service import Service
from tests.serving import front_with
from tests.tiny_encoder import write_tiny_encoder


@contextmanager
def serving_without_gallery(model_store: Path, classes: Sequence[str]) -> Iterator[str]:
    """The address of a model that has nothing to search in, and no probe where `classes` is empty."""
    write_tiny_encoder(model_store, classes=classes)
    front = front_with(Service(Encoder.load(model_store), None))
    server = uvicorn.Server(uvicorn.Config(build_app(front), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        front.admission.close()
