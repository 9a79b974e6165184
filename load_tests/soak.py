"""Does memory stay flat? Hundreds of thousands of mixed requests against one server, and its memory on the way.

    .venv-full/bin/python -m load_tests.soak --requests 200000       # about ten minutes on two cores

Starts `akin serve` in an empty folder. Sends images of many sizes and formats, with and without neighbours, several
at once, bad ones, wrong paths and methods, oversized bodies, and hangs up in the middle. Every answer must have the
status that its request deserves, from the same process. Fails when memory has grown by more than --megabytes since
the warm-up, which sends the same mixture. Writes var/soak.json.
"""

import argparse
import json
import sys
import tempfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import perf_counter, sleep

from load_tests import machine, server
from load_tests.arguments import add_model, at_least_one, exit_code, exit_with, model_of
from load_tests.crowd import BROKEN, HOST, NOBODY_WAITED, Answer, Crowd, Request, post
from load_tests.fronts import Model, native
from load_tests.photos import camera_photo
from load_tests.pictures import encode, scene

CONNECTIONS = 8
READINGS = 20  # of memory, spread over the run
REST_SECONDS = 1.0  # before each reading, for what is under way to end
SMALL, LARGE = ((32, 32), (96, 96), (64, 200), (300, 220)), ((640, 480), (1280, 960))  # pixels
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
TOO_MANY_BYTES = 100 << 20


@dataclass(frozen=True)
class Kind:
    """Requests that deserve the same status."""

    status: int
    weight: float  # how often it is sent, beside the others
    requests: tuple[Request, ...]


def kinds(model: str, camera: bytes) -> dict[str, Kind]:
    """What is sent to a server of that model."""
    path = f"/predictions/{model}"
    pictures, large = _pictures(SMALL), _pictures(LARGE)
    small = encode(scene(96, 96), quality=90)
    openai = json.dumps({"model": model, "input": [f"data:image/jpeg;base64,{b64encode(small).decode()}"]}).encode()
    as_json = (("content-type", "application/json"),)
    as_form, form = (("content-type", "multipart/form-data; boundary=between"),), _form([*pictures[:3], b"no image"])
    return {
        "image": Kind(200, 60, _each(path, pictures)),
        "large image": Kind(200, 1, _each(path, large)),
        "camera photo": Kind(200, 0.1, _each(path, [camera])),
        "neighbours": Kind(200, 15, _each(f"{path}?k=5", pictures)),
        "float32 bytes": Kind(200, 4, (post(path, small, headers=[("accept", "application/octet-stream")]),)),
        "several, one of them bad": Kind(200, 2, (post(path, form, headers=as_form),)),
        "openai": Kind(200, 4, (post("/v1/embeddings", openai, headers=as_json),)),
        "damaged image": Kind(400, 3, _each(path, [each[: len(each) // 2] for each in pictures])),
        "empty": Kind(400, 1, _each(path, [b""])),
        "bad k": Kind(400, 1, _each(f"{path}?k=many", [small])),
        "no image": Kind(415, 2, _each(path, [b"plain text", b"\x7fELF" + bytes(2000)])),
        "no such model": Kind(404, 2, _each(f"{path}-of-another", [small])),
        "no such page": Kind(404, 1, (_get("/nowhere"),)),
        "too many bytes": Kind(413, 1, (_declared(path, TOO_MANY_BYTES, small),)),
        "wrong method": Kind(405, 1, (_get(path),)),
        "metrics": Kind(200, 0.5, (_get("/metrics"),)),
        "hung up on": Kind(NOBODY_WAITED, 2, _hung_up(_each(path, pictures))),
        "hung up within": Kind(NOBODY_WAITED, 1, _hung_up([_declared(path, len(small), small[: len(small) // 2])])),
    }


@dataclass
class Soak:
    """Requests drawn from the kinds, and what came of them."""

    port: int
    kinds: dict[str, Kind]
    random: Random = field(default_factory=lambda: Random(0))
    answers: Counter[str] = field(default_factory=Counter)  # by kind
    wrong: Counter[str] = field(default_factory=Counter)  # by what was seen in place of the status

    def send(self, number: int) -> None:
        """So many requests, answered."""
        drawn = self._draw(number)
        Crowd(self.port, CONNECTIONS, lambda: next(drawn, None), self._hear).run()

    def _draw(self, number: int) -> Iterator[Request]:
        names = list(self.kinds)
        weights = [kind.weight for kind in self.kinds.values()]
        for name in self.random.choices(names, weights, k=number):
            request = self.random.choice(self.kinds[name].requests)
            yield Request(request.data, name, request.hang_up)

    def _hear(self, answer: Answer) -> float:
        name = answer.request.kind
        self.answers[name] += 1
        if answer.status != self.kinds[name].status:
            seen = "no answer" if answer.status == BROKEN else str(answer.status)
            self.wrong[f"{name}: {seen} in place of {self.kinds[name].status}"] += 1
        return 0.0


def run(requests: int, warm_up: int, megabytes: float, model: Model, out: Path) -> int:
    """Send, read memory, write. Returns the exit code: 1 where memory grew too much or an answer was wrong."""
    described = machine.describe(model.python)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=out.parent) as folder, native(model, Path(folder)) as served:
        soak = Soak(served.port, kinds(model.name, camera_photo().data))
        soak.send(warm_up)
        started, resident_mb = perf_counter(), [_resident_mb(served)]
        for done, part in _parts(requests):
            soak.send(part)
            resident_mb.append(_resident_mb(served))
            print(f"{done:,} requests: {resident_mb[-1]:.1f} MB", file=sys.stderr, flush=True)
        seconds = perf_counter() - started
        if served.process.poll() is not None:
            raise server.ServerError(f"the server has ended with {served.process.returncode}")
    grown_mb = resident_mb[-1] - resident_mb[0]
    result = {
        **described,
        "requests": requests,
        "warm_up": warm_up,
        "seconds": seconds,
        "resident_mb": resident_mb,
        "grown_mb": grown_mb,
        "most_mb": megabytes,
        "answers": dict(soak.answers),
        "wrong": dict(soak.wrong),
    }
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    passed = grown_mb <= megabytes and not soak.wrong
    print(
        f"{requests:,} requests in {seconds:,.0f} s: {resident_mb[0]:.1f} MB after the warm-up, "
        f"{resident_mb[-1]:.1f} MB in the end, grown by {grown_mb:.1f} MB "
        f"(≤ {megabytes:g}): {'met' if passed else 'missed'}"
    )
    for what, times in soak.wrong.most_common():
        print(f"wrong {times} times: {what}")
    print(f"written to {out}")
    return 0 if passed else 1


def _parts(total: int) -> Iterator[tuple[int, int]]:
    """Of `total` requests, at most READINGS parts about alike: how many are done with each, and its size."""
    size = -(-total // READINGS)
    for begin in range(0, total, size):
        end = min(begin + size, total)
        yield end, end - begin


def _resident_mb(served: server.Server) -> float:
    sleep(REST_SECONDS)
    return served.memory().resident_mb


def _pictures(sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """Of each size, one in each format."""
    scenes = [scene(*size, seed) for seed, size in enumerate(sizes)]
    return [encode(picture, format) for picture in scenes for format in FORMATS]


def _each(path: str, bodies: list[bytes]) -> tuple[Request, ...]:
    return tuple(post(path, body) for body in bodies)


def _get(path: str) -> Request:
    return Request(f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())


def _declared(path: str, size: int, body: bytes) -> Request:
    """A POST that says it has `size` bytes, whatever it has."""
    return post(path, body, headers=[("content-length", str(size))])


def _hung_up(requests: tuple[Request, ...] | list[Request]) -> tuple[Request, ...]:
    return tuple(Request(request.data, hang_up=True) for request in requests)


def _form(images: list[bytes]) -> bytes:
    """multipart/form-data with the boundary "between"."""
    parts = (
        b'--between\r\ncontent-disposition: form-data; name="image"; filename="%d"\r\n\r\n%s\r\n' % (number, image)
        for number, image in enumerate(images)
    )
    return b"".join(parts) + b"--between--\r\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    shown = " (default: %(default)s)"
    parser.add_argument("--requests", type=at_least_one, default=200_000, help="after the warm-up" + shown)
    parser.add_argument("--warm-up", type=at_least_one, default=10_000, help="requests before" + shown)
    parser.add_argument("--megabytes", type=float, default=20, help="by how much memory may grow" + shown)
    add_model(parser)
    parser.add_argument("--out", type=Path, default=Path("var/soak.json"), help="where the JSON goes" + shown)
    chosen = parser.parse_args()
    model = model_of(chosen)
    return exit_code("soak", lambda: run(chosen.requests, chosen.warm_up, chosen.megabytes, model, chosen.out))


if __name__ == "__main__":
    exit_with(main)
