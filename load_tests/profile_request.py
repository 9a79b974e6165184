"""Where each tenth of a millisecond of one request goes: stamps in the server and in its only client, by one clock.

    .venv-full/bin/python -m load_tests.profile_request --requests 3000      # a table, in the order of what happens

Starts `akin serve` with one thread a request, wrapped in load_tests/stamps.py. A line is the mean over the tenth of
the requests whose whole time is next to the median, so the lines add up to it. Writes var/profile.json. Linux only:
there perf_counter is the same clock in all processes.
"""

import argparse
import json
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from load_tests import floor, machine, server
from load_tests.arguments import add_model, at_least_one, exit_code, exit_with, model_of
from load_tests.crowd import LENGTH, post
from load_tests.fronts import ONE_THREAD, ROOT, Model, native
from load_tests.photos import small_photo
from load_tests.report import Row

STAMPED = ROOT / "load_tests/stamps.py"
READ_BYTES = 1 << 16
WARM_UP = 300  # requests
TURNS = 10  # of the floor, the server with stamps and the one without, so that noise hits all alike
FLOOR_SECONDS = 0.5
STEPS = (  # each stamp, and what has been done since the one before it
    ("sent", ""),
    ("read", "client to server: write, kernel, the event loop wakes up"),
    ("routed", "HTTP parsed, ASGI task begun"),
    ("submitted", "path, headers and body looked at"),
    ("begun", "hand-over to a worker thread"),
    ("decoding", "content type and options"),
    ("decoded", "decode"),
    ("embedding", "decode to embed: its time noted, a batch of one"),
    ("embedded", "embed: session run"),
    ("writing", "answer put together: label, confidence"),
    ("written", "JSON"),
    ("settled", "hand-over back to the event loop"),
    ("replying", "task woken, metrics, Server-Timing"),
    # The client may have the answer before the server has come back from writing it.
    ("received", "server to client: head and body written, kernel, the client wakes up"),
)
SERVER_STEPS = [name for name, _ in STEPS[1:-1]]


def ask(port: int, request: bytes, times: int) -> list[tuple[float, float]]:
    """When each request was sent and when its answer was whole, over one connection."""
    taken = []
    with socket.create_connection((server.HOST, port), timeout=server.PATIENCE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            sent, answer, whole = perf_counter(), b"", sys.maxsize
            connection.sendall(request)
            while len(answer) < whole:
                if not (data := connection.recv(READ_BYTES)):
                    raise server.ServerError(f"the server hung up after {answer[:200]!r}")
                answer += data
                if (end := answer.find(b"\r\n\r\n") + 4) >= 4 and (length := LENGTH.search(answer, 0, end)):
                    whole = end + int(length[1])
            taken.append((sent, perf_counter()))
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise server.ServerError(f"the server answered {answer[:200]!r}")
    return taken


def split(stamps: Sequence[tuple[str, float]], taken: Sequence[tuple[float, float]]) -> np.ndarray:
    """(requests, steps) float64: milliseconds. A row adds up to the whole time of its request."""
    moments = np.array(sorted(at for _, at in stamps))
    by_request = []
    for sent, received in taken:
        first, last = np.searchsorted(moments, (sent, received))
        by_request.append((sent, stamps[first:last], received))
    rows = [
        [sent, *(at for _, at in between), received]
        for sent, between, received in by_request
        if [name for name, _ in between] == SERVER_STEPS
    ]
    if len(rows) < len(taken) * 0.9:
        way = ", ".join(SERVER_STEPS)
        raise server.ServerError(f"only {len(rows)} of {len(taken)} requests came by {way} in turn; mend stamps.py")
    return np.diff(np.array(rows), axis=1) * 1e3


def rows_of(steps_ms: np.ndarray) -> list[Row]:
    """A line for each step, and their sum: means over the tenth of the requests that is next to the median."""
    whole = steps_ms.sum(axis=1)
    near = np.abs(whole - np.median(whole)).argsort()[: max(1, len(whole) // 10)]
    means = steps_ms[near].mean(axis=0)
    rows = [Row(what, "ms", (float(ms),)) for (_, what), ms in zip(STEPS[1:], means, strict=True)]
    return [*rows, Row("one request, as its client waits", "ms", (float(means.sum()),))]


@dataclass(frozen=True)
class Profile:
    """What was measured."""

    steps_ms: np.ndarray  # (requests, steps) float64
    plain_ms: list[float]  # p50 of each turn of the server without stamps
    floor_ms: list[float]  # p50 right before each turn


def measure(model: Model, photo: Path, requests: int, folder: Path) -> Profile:
    """Turn by turn."""
    file = folder.resolve() / "stamps.json"
    command = [str(model.python), str(STAMPED), str(file), *model.arguments, *ONE_THREAD]
    request, times = post(f"/predictions/{model.name}", photo.read_bytes()).data, -(-requests // TURNS)
    stamped: list[tuple[float, float]] = []
    plain_ms, floor_ms = [], []
    for place in ("stamped", "plain"):
        (folder / place).mkdir()
    with server.running(command, folder / "stamped") as one, native(model, folder / "plain", ONE_THREAD) as other:
        for served in (one, other):
            ask(served.port, request, WARM_UP)
        for _ in range(TURNS):
            least = floor.measure_with(model.python, model.store, model.name, photo, FLOOR_SECONDS)
            floor_ms.append(least.p50_ms)
            stamped += ask(one.port, request, times)
            plain = np.array(ask(other.port, request, times))
            plain_ms.append(float(np.median(np.diff(plain))) * 1e3)
    return Profile(split(json.loads(file.read_text(encoding="utf-8")), stamped), plain_ms, floor_ms)


def run(requests: int, model: Model, images: Path | None, out: Path) -> int:
    """Measure, print, write."""
    described, photo = machine.describe(model.python), small_photo(images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="profile-", dir=out.parent) as folder:
        sent = Path(folder) / "small.jpg"
        sent.write_bytes(photo.data)
        taken = measure(model, sent, requests, Path(folder))
    costs = tuple(plain - least for plain, least in zip(taken.plain_ms, taken.floor_ms, strict=True))
    rows = [
        *rows_of(taken.steps_ms),
        Row("the same without stamps: p50", "ms", tuple(taken.plain_ms)),
        Row("floor (decode and session run, no server): p50", "ms", tuple(taken.floor_ms)),
        Row("what the server adds to the floor of its turn", "ms", costs),
    ]
    written = {**described, "photo": photo.description, "requests": requests, "rows": [row.to_json() for row in rows]}
    out.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("| ms | of one request |\n|---:|---|", *(f"| {row.median:.3f} | {row.name} |" for row in rows), sep="\n")
    print(f"\n{described['cpu']}, commit {described['commit']}, {described['date'][:10]}; written to {out}")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=at_least_one, default=3000)
    add_model(parser)
    parser.add_argument("--images", type=Path, help="whose first image is sent")
    parser.add_argument("--out", type=Path, default=Path("var/profile.json"), help="where the JSON goes")
    chosen = parser.parse_args()
    return exit_code("profile", lambda: run(chosen.requests, model_of(chosen), chosen.images, chosen.out))


if __name__ == "__main__":
    exit_with(main)
