"""Load from wrk: a file posted over keep-alive connections, every answer counted, none of them an error."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
SUMMARY = re.compile(r"^summary (\{.*\})$", re.MULTILINE)
TIMEOUT_SECONDS = 30  # for one answer; wrk's own 2 s are too few for large photos on a busy machine


class LoadError(Exception):
    """Load that could not be put on the server, or that it did not bear."""


@dataclass(frozen=True)
class Load:
    """What a number of connections, each sending its next request on its last answer, have seen."""

    p50_ms: float
    p99_ms: float
    requests_per_s: float


def post(url: str, body: Path, connections: int, seconds: int, headers: Sequence[tuple[str, str]] = ()) -> Load:
    """Post the file `body` to `url` for that long; raise `LoadError` when a single answer was not a good one."""
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{TIMEOUT_SECONDS}s", "-s", str(SCRIPT)]
    options += [f"-H{name}: {value}" for name, value in headers]
    command = [find_wrk(), *options, url, "--", str(body)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise LoadError(f"{' '.join(command)} failed: {done.stdout.strip()}")
    return parse(done.stdout)


def find_wrk() -> str:
    """Path of the executable."""
    if path := shutil.which("wrk"):
        return path
    raise LoadError("wrk is not installed; on Debian and Ubuntu: apt-get install wrk")


def version() -> str:
    """Such as "4.1.0"."""
    # It prints its usage behind the version, and exits with 1.
    said = subprocess.run([find_wrk(), "-v"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else "unknown"


def parse(output: str) -> Load:
    """The summary that post.lua writes behind wrk's own text."""
    found = SUMMARY.search(output)
    if not found:
        raise LoadError(f"wrk ended without a summary; it printed: {output.strip()}")
    summary = json.loads(found[1])
    if summary["refused"] or summary["broken"] or not summary["requests"]:
        raise LoadError(
            f"{summary['requests']} requests were answered, {summary['refused']} of them with an error status, and "
            f"{summary['broken']} connections failed or timed out; a benchmark of errors says nothing: "
            "look at what the server answers to one such request"
        )
    return Load(
        p50_ms=summary["p50_us"] / 1e3,
        p99_ms=summary["p99_us"] / 1e3,
        requests_per_s=summary["requests"] * 1e6 / summary["duration_us"],
    )
