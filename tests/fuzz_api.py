"""Schema-driven fuzzing of the HTTP API: schemathesis sends a real server whatever its /openapi.json allows, and what
it forbids, and holds each answer against it.

    python -m tests.fuzz_api --seconds 60 --seed 0 --corpus var/fuzz

Ends with 1 and schemathesis's report, which has a curl line for each failure, where an answer was not as described;
and where the server died, wrote a traceback, or answered a good request wrongly at the end; and where no request to
an operation was good, so that its answer was never seen.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from encoder.manifest import Manifest
from tests.server import ROOT, Server, running_server
from tests.serving import JPEG, PATH, write_seeded_store

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
    "negative_data_rejection",
)
ANSWERED = "answered.txt"
PICTURED = "pictured"  # no request but this file's own knows that id
TOKEN = "the-token-of-the-fuzz"
PATIENCE_SECONDS = 120  # beyond --seconds: schemathesis ends what it is at, and shrinks what it has found
EXAMPLES_SECONDS = 600  # for a number of examples, on a busy machine
SECOND_CHANCE = 200  # examples for each operation that no good request has reached in time


def fuzz(folder: Path, seed: int, seconds: int = 0, examples: int = 0) -> list[str]:
    """What is wrong, in words; nothing is if the list is empty. Everything written goes into `folder`.

    The run is limited by seconds, or by examples for each operation and phase.
    """
    limit = ("--max-time", str(seconds)) if seconds else ("--max-examples", str(examples))
    within = seconds + PATIENCE_SECONDS if seconds else EXAMPLES_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = folder / "model_store"
    manifest = write_seeded_store(store)
    (folder / "token").write_text(TOKEN)
    arguments = ["--index", "gallery", "--thumbnails", "--token-file", str((folder / "token").resolve())]
    with running_server(store, folder, arguments) as server:
        _put_pictured(server)
        before = _good_answer(server)
        environment = _environment(manifest, folder)
        problems = _schemathesis(server, folder / "report.txt", environment, within, "--seed", str(seed), *limit)
        unanswered = _unanswered(server, folder)
        if unanswered and not problems:  # the time may have been short, on a busy machine
            these = [word for operation in unanswered for word in ("--include-name", operation)]
            again = ("--phases", "examples,coverage,fuzzing", "--max-examples", str(SECOND_CHANCE), *these)
            report = folder / "second_chance.txt"
            problems = _schemathesis(server, report, environment, EXAMPLES_SECONDS, "--seed", str(seed), *again)
            unanswered = _unanswered(server, folder)
        if server.process.poll() is not None:
            return [*problems, f"the server ended with {server.process.returncode}:\n{server.log[-3000:]}"]
        if unanswered:
            problems.append(f"no request was answered with 200: {', '.join(unanswered)}")
        if _good_answer(server) != before:
            problems.append("a good request is answered otherwise than before")
        if "Warning" in server.log:
            problems.append(f"the server wrote a warning of Python's:\n{server.log[-3000:]}")
        if "Traceback" in server.log:
            at = server.log.index("Traceback")
            problems.append(f"the server wrote a traceback:\n{server.log[max(0, at - 500) : at + 3000]}")
    return problems


def _good_answer(server: Server) -> tuple[list[float], list[float]]:
    """Embedding and logits of a picture."""
    answer = httpx.post(server.url + PATH, content=JPEG, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["embedding"], answer.json()["logits"]


def _put_pictured(server: Server) -> None:
    """A row with a thumbnail that is there to the end."""
    kept = httpx.put(f"{server.url}/index/{PICTURED}", content=JPEG, headers={"Authorization": f"Bearer {TOKEN}"})
    assert kept.status_code == 200, kept.text


def _environment(manifest: Manifest, folder: Path) -> dict[str, str]:
    """What the hooks of schemathesis are told."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.fuzz_hooks",
        "AKIN_FUZZ_DIMENSION": str(manifest.dimension),
        "AKIN_FUZZ_SIZE": str(manifest.preprocess.size),
        "AKIN_FUZZ_PICTURED": PICTURED,
        "AKIN_FUZZ_ANSWERED": str((folder / ANSWERED).resolve()),
        "AKIN_FUZZ_VERSION": manifest.model_digest[:12],
    }


def _schemathesis(
    server: Server, report: Path, environment: dict[str, str], within: int, *options: str
) -> list[str]:
    """What it says, if that is not that all is well. within: seconds."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {TOKEN}", "--request-timeout", "30", "--checks", ",".join(CHECKS)),
        *("--suppress-health-check", "all", "--warnings", "off", "--no-color", "--output-sanitize", "false"),
    ]
    ran = subprocess.run(
        [*command, *options], cwd=report.parent, env=environment, capture_output=True, text=True, timeout=within
    )
    report.write_text(ran.stdout + ran.stderr)
    return [] if ran.returncode == 0 else [ran.stdout + ran.stderr]


def _unanswered(server: Server, folder: Path) -> list[str]:
    """The operations that no request has got 200 from, without deletions: few find what they would delete."""
    if server.process.poll() is not None:
        return []
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    operations = {f"{method.upper()} {path}" for path, of in paths.items() for method in of if method != "delete"}
    file = folder / ANSWERED
    return sorted(operations - set(file.read_text().splitlines() if file.exists() else ()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path("var/fuzz"), help="its folder api/ is made anew")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server ends with this
    folder = given.corpus / "api"
    problems = fuzz(folder, given.seed, given.seconds)
    print("\n\n".join(problems) if problems else (folder / "report.txt").read_text())
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
