"""A server to measure: what it takes of memory, and what is said where it does not start."""

import subprocess
import sys
from pathlib import Path

import pytest

from load_tests import server


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    hold = "import subprocess, sys; held = b'.' * {}; print(flush=True); {}"
    below = hold.format(200_000_000, "sys.stdin.read()")
    above = hold.format(100_000_000, f"subprocess.run([sys.executable, '-c', {below!r}])")
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", above], **piped) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        process.stdout.readline()  # both hold theirs
        memory = server.Server(0, process, 0.0).memory()
        process.stdin.close()
    assert 300 < memory.resident_mb <= memory.peak_mb < 400


def test_a_server_that_does_not_start_is_named_with_what_it_printed(tmp_path: Path) -> None:
    with (
        pytest.raises(server.ServerError, match="did not become ready") as caught,
        server.running([sys.executable, "-c", "print('no model here')"], tmp_path),
    ):
        pass
    assert caught.value.__notes__ == ["the server printed: no model here"]
