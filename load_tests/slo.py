"""The gate: a front under load, failed when p50 misses its target, an answer is wrong, or too few were measured.

    make load-test                                # or: .venv-full/bin/python -m load_tests.slo --seconds 30
    make load-test URL=http://127.0.0.1:8080      # a server that runs already

Without a URL it starts a front of this checkout on a free port, with a new gallery. Locust's users send image
after image (load_tests/locustfile.py says how, and what a closed loop hides), from the same cores as the server.
Writes var/load-test.json and, beside it, the latencies as a picture. Exits with 1 where the gate fails, with a
line for each reason, and with 2 where nothing could be measured.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from load_tests import latencies, machine, server
from load_tests.fronts import FRONTS, ROOT, Model
from load_tests.latencies import Load, LocustError, Measured
from load_tests.pictures import encode, scene

ERRORS = (server.ServerError, LocustError, OSError)
MIN_REQUESTS = 2000
ASK_SECONDS = 30
_direct = build_opener(ProxyHandler({}))  # as Locust's users go: no proxy in between


@dataclass(frozen=True)
class Settings:
    """The knobs of the gate."""

    url: str | None = None  # None: a front is started
    front: str = "native"
    slo_ms: float = 20.0
    users: int = 4
    seconds: int = 30  # measured
    warm_up: int = 3  # seconds before
    min_requests: int = MIN_REQUESTS
    images: Path | None = None
    model_store: Path = Path("model_store")
    name: str = "encoder"
    environment: Path = ROOT / ".venv"
    out: Path = Path("var/load-test.json")

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        parser = argparse.ArgumentParser(prog="make load-test", description=__doc__.partition("\n")[0])
        add = parser.add_argument
        shown = " (default: %(default)s)"
        add("--url", type=_url, help="the server to measure (default: start one)")
        add("--front", choices=sorted(FRONTS), default=cls.front, help="which front to start" + shown)
        add("--slo-ms", type=_within(0.001, 60_000, float), default=cls.slo_ms, help="p50 must be below" + shown)
        add("--users", type=_within(1, 1000, int), default=cls.users, help="who send at the same time" + shown)
        add("--seconds", type=_within(1, 3600, int), default=cls.seconds, help="to measure" + shown)
        add("--warm-up", type=_within(0, 600, int), default=cls.warm_up, help="seconds before that" + shown)
        add("--min-requests", type=_within(1, 10**9, int), default=cls.min_requests, help="to be measured" + shown)
        add("--images", type=Path, help="folder of images to send (default: STL-10 if there, else drawn)")
        add("--model-store", type=Path, default=cls.model_store, help="folder of the artifacts" + shown)
        add("--name", default=cls.name, help="the model's name" + shown)
        add("--environment", type=Path, default=cls.environment, help="what the native front runs in")
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        return cls(**vars(parser.parse_args(argv)))

    @property
    def path(self) -> str:
        return f"/predictions/{self.name}"

    @property
    def picture(self) -> Path:
        return self.out.with_suffix(".png")


def shortfalls(measured: Measured, slo_ms: float, min_requests: int) -> list[str]:
    """Why the gate fails; empty where it does not."""
    found = []
    if measured.failed:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in measured.errors.items())
        found.append(f"{measured.failed} requests failed, and none may: {reasons}")
    if measured.requests < min_requests:
        found.append(
            f"{measured.requests} requests were measured, at least {min_requests} are needed: raise SECONDS"
            f" (at {measured.per_second:.0f} requests/s)"
        )
    p50 = measured.percentile(50)
    if measured.requests and not p50 < slo_ms:
        found.append(f"p50 is {p50:.2f} ms, and must be below {slo_ms:g} ms")
    return found


def run(settings: Settings) -> int:
    """Measure, print, write, judge. Returns the exit code: 1 where the gate fails."""
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="load-test-", dir=settings.out.parent.resolve())
    with folder as work, _served(settings, Path(work)) as url:
        about = _about(settings, url)
        print(_introduce(settings, about), flush=True)
        knobs = (settings.users, settings.seconds, settings.warm_up, settings.images)
        measured = latencies.measure(Load(url, settings.path, *knobs), Path(work))
    failed = shortfalls(measured, settings.slo_ms, settings.min_requests)
    print(_summarize(measured), flush=True)
    _write(settings, about, measured, failed)
    for reason in failed:
        print(f"FAILED: {reason}")
    if not failed:
        print(f"passed: p50 is below {settings.slo_ms:g} ms, without an error in {measured.requests:,} requests")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    try:
        return run(Settings.from_arguments(argv))
    except ERRORS as error:
        print(f"load-test: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def ask(url: str, path: str) -> dict[str, Any]:
    """Model and execution provider, as far as the server says them: TorchServe's handler names its provider in a
    header, the native front at `/`. One that answers with errors says nothing."""
    photo = encode(scene(96, 96), quality=90)
    answer, headers = _fetch(Request(url + path, photo, {"content-type": "application/octet-stream"}))
    provider = headers.get("akin-provider") or _fetch(Request(f"{url}/"))[0].get("provider", "not said")
    return {"model": answer.get("model", "not said"), "provider": provider}


def _fetch(request: Request) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The JSON object of an answer and its headers, empty where it is none; `ServerError` where nobody answers."""
    try:
        with _direct.open(request, timeout=ASK_SECONDS) as response:
            found, headers = json.loads(response.read()), response.headers
    except (HTTPError, ValueError):
        return {}, {}
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise server.ServerError(f"nothing answers at {request.full_url} ({reason}); is the server up?") from error
    return found if isinstance(found, dict) else {}, headers


@contextmanager
def _served(settings: Settings, folder: Path) -> Iterator[str]:
    """The URL to measure: the one given, or that of a front started in `folder`."""
    if settings.url:
        yield settings.url
        return
    model = Model(settings.model_store, settings.name, settings.environment)
    with FRONTS[settings.front](model, folder) as started:
        yield started.url


def _about(settings: Settings, url: str) -> dict[str, Any]:
    """Server, model, and the machine of the load, which is also the server's where one was started."""
    serving = settings.environment.absolute() / "bin/python"
    natively = not settings.url and settings.front == "native"
    return {
        "server": f"{url}, as given" if settings.url else f"{settings.front} at {url}, started for this",
        **ask(url, settings.path),
        **machine.describe(serving if natively else Path(sys.executable)),
    }


def _introduce(settings: Settings, about: dict[str, Any]) -> str:
    sets = ", ".join(about["instruction_sets"]) or "no int8 instructions known"
    remark = "it sends the load; the server's may be another" if settings.url else "it sends the load, too"
    return (
        f"server   {about['server']}\n"
        f"model    {about['model']} on {about['provider']}, commit {about['commit']}\n"
        f"machine  {about['cores']} cores of {about['cpu']} ({sets}), GPU: {_gpu(about)}; {remark}\n"
        f"load     {settings.users} users without pauses, {settings.seconds} s after {settings.warm_up} s of warm-up"
    )


def _summarize(measured: Measured) -> str:
    values = "   ".join(f"p{percent} {measured.percentile(percent):.2f} ms" for percent in (50, 95, 99))
    return (
        f"sent     {measured.sent}\n"
        f"latency  {values}\n"
        f"rate     {measured.per_second:,.1f} requests/s, {measured.requests:,} measured, {measured.failed:,} failed"
    )


def _write(settings: Settings, about: dict[str, Any], measured: Measured, failed: Sequence[str]) -> None:
    knobs = {"users": settings.users, "warm_up_s": settings.warm_up, "slo_ms": settings.slo_ms}
    result = {**about, **knobs, **measured.to_json(), "passed": not failed, "shortfalls": list(failed)}
    settings.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = f"written  {settings.out}"
    if measured.requests:
        title = (
            f"{about['model']} on {about['provider']}; {about['server']}; {settings.users} users without pauses",
            f"{about['cores']} cores of {about['cpu']}, GPU: {_gpu(about)}",
            f"commit {about['commit']}, {about['date'][:10]}",
        )
        latencies.draw(measured, settings.slo_ms, title, settings.picture)
        written += f", drawn in {settings.picture}"
    print(written, flush=True)


def _gpu(about: dict[str, Any]) -> str:
    return "; ".join(about["gpus"]) or "none"


def _url(text: str) -> str:
    """An argparse type: the server's address, without a path."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise argparse.ArgumentTypeError(f"{text!r} is not like http://127.0.0.1:8080")
    return text.rstrip("/")


def _within(low: float, high: float, of: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number from `low` to `high`."""

    def parse(text: str) -> Any:
        number = of(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} is not within {low:g} to {high:g}")
        return number

    parse.__name__ = "number"  # what argparse calls it in "invalid ... value"
    return parse


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that the server ends with us
    sys.exit(main())
