"""Both fuzzers at once: a minute in `make test` (AKIN_FUZZ_SECONDS for another time), an hour in `make test-long`.

What they found and was mended stands at the end, as the requests that showed it.
"""

import os
import platform
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from images.decode import MAX_WEBP_PIXELS, decode
from images.spec import PreprocessSpec
from tests import fuzz_api, server
from tests.server import ROOT, Server
from tests.serving import JPEG

SHORT = int(os.environ.get("AKIN_FUZZ_SECONDS", "60"))
HOUR = 3600
PATIENCE_SECONDS = 240  # beyond the time given: starting, instrumenting, shrinking, on a busy machine
# atheris comes as a wheel for this alone (and for macOS with some Pythons); there it must not be missing.
needs_atheris = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="atheris has wheels for x86-64 Linux"
)

Runs = tuple[dict[str, "subprocess.Popen[bytes]"], Path, int]  # by module; their folder; seconds


def start(module: str, folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """A fuzzer in a process of its own; what it says goes into a file of `folder`."""
    with (folder / f"{module}.log").open("wb") as log:
        command = [sys.executable, "-m", f"tests.{module}", "--corpus", str(folder / module), *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module", params=[SHORT, pytest.param(HOUR, marks=pytest.mark.long)], ids=["minute", "hour"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Both at once. The minute is always the same one; the hour begins elsewhere each time."""
    folder = tmp_path_factory.mktemp("fuzz")
    seed = 0 if request.param == SHORT else int(time.time()) % 2**31
    modules = [module for module in ("fuzz_decode", "fuzz_api") if module == "fuzz_api" or not needs_atheris.args[0]]
    options = ("--seconds", str(request.param), "--seed", str(seed))
    started = {module: start(module, folder, *options) for module in modules}
    try:
        yield started, folder, request.param
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(timeout=60)


def finish(runs: Runs, module: str) -> str:
    """What the fuzzer has said, once it is through without a find."""
    processes, folder, seconds = runs
    code = processes[module].wait(timeout=seconds + PATIENCE_SECONDS)
    said = (folder / f"{module}.log").read_text(errors="replace")
    # A find of libFuzzer stands at the end, with the path and the base64 of its input.
    assert code == 0, f"{module} ended with {code}; see {folder}\n{said[-8000:] if module == 'fuzz_decode' else said}"
    return said


@needs_atheris
def test_no_bytes_make_decode_and_the_parsers_break_their_promises(runs: Runs) -> None:
    said = finish(runs, "fuzz_decode")
    executed = re.search(r"stat::number_of_executed_units: (\d+)", said)
    assert executed and int(executed[1]) > 200, said[-2000:]  # more than the seeds, of which there are 56
    assert list((runs[1] / "fuzz_decode" / "corpus").iterdir())  # mutations have reached new branches


def test_no_request_that_the_schema_allows_or_forbids_gets_an_answer_it_does_not_describe(runs: Runs) -> None:
    said = finish(runs, "fuzz_api")
    selected, total, tested, generated = (
        int(found[1]) if (found := re.search(pattern, said)) else 0
        for pattern in (r"(\d+) selected", r"selected / (\d+) total", r"Tested: (\d+)", r"(\d+) generated")
    )
    assert selected == total >= 38 and generated > 20, said
    assert tested == total or (tested and "Time limit reached" in said), said  # on a machine that is too busy


# The fuzzers themselves


BROKEN = """
import sys
import numpy as np
from tests import fuzz_decode as fuzz
from tests.serving import JPEG

def refuse(status, reason):
    raise fuzz.ImageError(status, reason)

broken = {
    "another exception": lambda data, spec: {}["tag 42"],
    "another status": lambda data, spec: refuse(500, "no"),
    "an endless reason": lambda data, spec: refuse(400, "no" * 300),
    "a reason that no JSON can hold": lambda data, spec: refuse(400, chr(0xD800)),
    "another shape": lambda data, spec: np.zeros((32, 31, 3), np.uint8),
    "another dtype": lambda data, spec: np.zeros((32, 32, 3), np.float32),
    "another answer each time": lambda data, spec: np.random.randint(0, 9, (32, 32, 3), np.uint8),
    "too slow": fuzz.decode,
    "too much memory": fuzz.decode,
}
fuzz.one_input(bytes(1) + JPEG)
for name, fuzz.decode in broken.items():
    fuzz.MAX_CPU_SECONDS = 0 if name == "too slow" else 20
    fuzz.MAX_RSS_BYTES = 1 << 20 if name == "too much memory" else 1 << 30
    try:
        fuzz.one_input(bytes(1) + JPEG)
    except Exception:
        continue
    sys.exit(f"not seen: {name}")
fuzz.MAX_RSS_BYTES, fuzz.decode = 1 << 30, broken["another shape"]
fuzz.main(["--corpus", sys.argv[1]])
"""


@needs_atheris
def test_every_broken_promise_of_decode_is_seen_and_its_input_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BROKEN, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    said = ran.stdout.decode(errors="replace")
    assert ran.returncode == 77, said
    assert "PromiseBroken: decode gave uint8 of shape (32, 31, 3)" in said
    assert len(list(tmp_path.glob("crash-*"))) == 1


@needs_atheris
def test_the_greatest_webp_in_forty_bytes_stays_within_the_bounds_of_memory_and_time(tmp_path: Path) -> None:
    written, side = BytesIO(), 4096
    Image.new("RGBA", (side, MAX_WEBP_PIXELS // side), (1, 2, 3, 77)).save(written, "WEBP", lossless=True, method=0)
    assert len(written.getvalue()) < 100
    assert decode(written.getvalue(), PreprocessSpec(size=32)).shape == (32, 32, 3)
    (tmp_path / "input").write_bytes(b"\0" + written.getvalue())
    replay = start("fuzz_decode", tmp_path, "--replay", str(tmp_path / "input"))
    assert replay.wait(timeout=120) == 0, (tmp_path / "fuzz_decode.log").read_text(errors="replace")


def test_a_bug_of_every_kind_is_seen_in_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "start", partial(server.start, module="tests.planted"))
    said = "\n".join(fuzz_api.fuzz(tmp_path / "api", seed=0, examples=10))
    for kind in (
        "Server error",
        "Undocumented status code",
        "Undocumented Content-Type",
        "Response violates schema",
        "Schema-violating request accepted",
        "Wrong response to undeclared method",
        "API accepts requests without authentication",
        "a good request is answered otherwise than before",
        "the server wrote a traceback",
    ):
        assert kind in said


def test_a_server_that_has_died_and_operations_that_no_good_request_reached_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_api, "_schemathesis", lambda *_: [])
    (silence,) = fuzz_api.fuzz(tmp_path / "api", seed=0, seconds=60)
    assert silence.startswith("no request was answered with 200: GET /, GET /healthz")
    monkeypatch.setattr(fuzz_api, "_schemathesis", lambda server, *_: [str(server.stop())])
    _, death = fuzz_api.fuzz(tmp_path / "api", seed=0, seconds=60)
    assert death.startswith("the server ended with 0")


# What they have found


@pytest.mark.parametrize("nonsense", [{}, [], 0, False, ""])
def test_an_encoding_that_is_nothing_is_refused_and_not_taken_for_floats(
    client: httpx.Client, nonsense: object
) -> None:
    body = {"model": "encoder", "input": b64encode(JPEG).decode(), "encoding_format": nonsense}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "encoding_format"


def test_a_row_whose_path_is_percent_encoded_anywhere_has_the_id_that_it_names(writer: httpx.Client) -> None:
    for prefix in ("/index/", "/%69ndex/", "/models/encoder/index/", "/%6dodels/enc%6fder/%69ndex/"):
        stored = writer.put(prefix + "cats%2F1.jpg", json={"vector": [1.0] * 16})
        assert (stored.status_code, stored.json()["id"]) == (200, "cats/1.jpg")


def test_the_name_of_a_model_stands_before_its_index_and_before_nothing_else(client: httpx.Client) -> None:
    for path in ("/models/nobody/healthz", "/models/nobody/metrics", "/models/encoder/predictions/encoder"):
        assert client.get(path).status_code == 404


def test_what_libraries_say_of_a_clients_data_stays_out_of_the_log(
    index_server: Server, writer: httpx.Client
) -> None:
    endless = writer.put("/index/endless", json={"vector": [1e200] * 16})
    assert endless.status_code == 400 and "too long or too short" in endless.json()["error"]
    damaged = with_exif(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff\0\0\xff\xff")
    assert writer.post("/predictions/encoder", content=damaged).status_code == 200
    form = {"content-type": "multipart/form-data; boundary=b"}
    broken = writer.post("/predictions/encoder", content=b"--b\r\nna\rme: x\r\n\r\n\r\n--b--", headers=form)
    assert broken.status_code == 400
    for noise in ("Warning", "invalid character"):
        assert noise not in index_server.log


def with_exif(tiff: bytes) -> bytes:
    """JPEG with these metadata."""
    payload = b"Exif\0\0" + tiff
    return JPEG[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + JPEG[2:]
