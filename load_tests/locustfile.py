"""Load on either front: Locust users that post image after image, each as soon as its last answer is there.

    .venv-full/bin/locust -f load_tests/locustfile.py --headless --host http://127.0.0.1:8080 -u 4 -r 4 -t 30s

Posts the images of --images (or IMAGES) as they are; without it, STL-10 of ../shared/data as JPEG where that is
there, else drawn JPEGs; it says which. Writes --latencies, as JSON, with every latency in fractions of a
millisecond: Locust's own percentiles are rounded. `make load-test` starts it, and holds what it wrote to a target.

The loop is closed: a user whose answer is late sends nothing meanwhile, so a server that stalls is asked less
often, and its p99 is lower than arrivals at a fixed rate would see it (coordinated omission). p50 hardly suffers.
Speaks HTTP and imports no room of akin's, so that it measures any server alike.
"""

import io
import json
import os
import time
import zipfile
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import numpy as np
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from PIL import Image

STL10 = Path(__file__).parents[2] / "shared/data/stl10-train.zip"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
MOST_IMAGES = 256  # all of them in memory, and none in a cache of the server's
SIDE, QUALITY = 96, 90
TIMEOUT_SECONDS = 30


class Photos(NamedTuple):
    """What is sent."""

    data: list[bytes]
    origin: str


class Recorder:
    """Latencies and errors of all users. The first seconds warm the server up: only their errors count."""

    def __init__(self, warm_up_s: float) -> None:
        self.latencies_ms: list[float] = []
        self.errors: Counter[str] = Counter()
        self._from = time.perf_counter() + warm_up_s
        self._first_start, self._last_end = float("inf"), float("-inf")

    def record(self, response_time: float, exception: Exception | None, **_: Any) -> None:
        """Note one answer, which came just now. response_time: milliseconds, unrounded."""
        end = time.perf_counter()
        start = end - response_time / 1e3
        if exception is not None:  # an error may be quicker than an answer: it is no latency
            self.errors[str(exception) or type(exception).__name__] += 1
        elif start >= self._from:
            self.latencies_ms.append(response_time)
            self._first_start = min(self._first_start, start)
            self._last_end = max(self._last_end, end)

    def to_json(self) -> dict[str, Any]:
        measured = bool(self.latencies_ms)
        return {
            "latencies_ms": self.latencies_ms,
            "seconds": self._last_end - self._first_start if measured else 0.0,
            "errors": dict(self.errors),
        }


class Uploader(FastHttpUser):
    """Somebody with a pile of photos."""

    wait_time = constant(0)
    network_timeout = connection_timeout = TIMEOUT_SECONDS
    photos: Photos
    path: str
    users = 0

    def on_start(self) -> None:
        """Begin at a photo that no other user begins with."""
        begin = Uploader.users * 67 % len(self.photos.data)
        Uploader.users += 1
        self.upcoming = islice(cycle(self.photos.data), begin, None)

    @task
    def predict(self) -> None:
        """Post one image; the answer must have an embedding."""
        headers = {"content-type": "application/octet-stream"}
        with self.client.post(self.path, data=next(self.upcoming), headers=headers, catch_response=True) as answer:
            if answer.status_code == 200 and b'"embedding"' not in answer.content:
                answer.failure("200 without an embedding")


def load_photos(images: Path | None, stl10: Path = STL10) -> Photos:
    """The files of a folder as they are, else STL-10 where it is there, else drawn pictures."""
    if images is not None:
        files = _spread(sorted(file for file in images.rglob("*") if file.suffix.lower() in SUFFIXES))
        if not files:
            raise SystemExit(f"no image in {images}; name a folder with {', '.join(sorted(SUFFIXES))}")
        return Photos([file.read_bytes() for file in files], f"{len(files)} files of {images.name}")
    kind = f"{SIDE} × {SIDE} JPEG q{QUALITY}"
    if stl10.exists():
        with zipfile.ZipFile(stl10) as archive:
            names = _spread([name for name in archive.namelist() if name.endswith(".webp")])
            data = [_jpeg(Image.open(io.BytesIO(archive.read(name)))) for name in names]
        return Photos(data, f"{len(data)} images of STL-10 train, {kind}")
    data = [_jpeg(picture) for picture in islice(_drawn(), MOST_IMAGES)]
    return Photos(data, f"{len(data)} drawn images, {kind}")


def _spread(items: Sequence[Any]) -> list[Any]:
    """At most MOST_IMAGES of them, evenly taken."""
    return list(items[:: max(1, -(-len(items) // MOST_IMAGES))])


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _drawn() -> Iterator[Image.Image]:
    """Smooth colours under fine noise: as JPEG about as large as a photo of the size."""
    random = np.random.default_rng(0)
    while True:
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        yield Image.fromarray(np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    """The knobs beside Locust's own."""
    parser.add_argument("--images", default=os.environ.get("IMAGES", ""), help="folder of images to send")
    parser.add_argument("--path", default="/predictions/encoder", help="where they are posted")
    parser.add_argument("--warm-up", type=float, default=2.0, help="first seconds, which are not measured")
    parser.add_argument("--latencies", default="", help="JSON file for every latency measured")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Load the photos before any clock runs, and record from the moment that the users start."""
    options = environment.parsed_options
    Uploader.photos = load_photos(Path(options.images) if options.images else None)
    Uploader.path = options.path
    print(f"sending {Uploader.photos.origin}", flush=True)
    # The clock of gevent's loop stood meanwhile; --run-time would end earlier by as much.
    gevent.get_hub().loop.update_now()

    def begin(**_: Any) -> None:
        recorder = Recorder(options.warm_up)
        environment.events.request.add_listener(recorder.record)
        environment.events.test_stop.add_listener(lambda **_: finish(recorder))

    def finish(recorder: Recorder) -> None:
        if options.latencies:
            written = json.dumps({"sent": Uploader.photos.origin, **recorder.to_json()})
            Path(options.latencies).write_text(written, encoding="utf-8")

    environment.events.test_start.add_listener(begin)
