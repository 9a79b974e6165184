"""A real Milvus server for tests: the `milvus` package's, in a process and folder of its own, on free ports.

    python -m tests.milvus_server FOLDER      # prints its port and the server's pid, ends with standard input
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class MilvusProcess:
    """A server that answers."""

    port: int
    pid: int  # of the server itself
    parent: "subprocess.Popen[str]"

    @property
    def address(self) -> str:
        return f"milvus://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        """It takes connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As a power cut would."""
        os.kill(self.pid, signal.SIGKILL)
        self.parent.kill()
        self.parent.wait()


@contextmanager
def milvus_server(folder: Path) -> Iterator[MilvusProcess]:
    """Start a server whose data lie in `folder`; it is ended with the block."""
    command = [sys.executable, "-m", "tests.milvus_server", str(folder)]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        parent = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    pid = 0
    try:
        line = _text(parent.stdout).readline()
        assert line, (folder.parent / f"{folder.name}.log").read_text()
        found, pid = map(int, line.split())
        yield MilvusProcess(found, pid, parent)
    finally:
        if pid and parent.poll() is None:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)  # its own stop waits a second and then does the same
        _text(parent.stdin).close()
        _text(parent.stdout).close()
        parent.kill()
        parent.wait()


def _text(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def main() -> None:
    from milvus import MilvusServer, MilvusServerConfig

    logging.disable(logging.CRITICAL)
    # Its own check takes a port on which a killed server had connections for one that is in use.
    MilvusServerConfig.try_bind_port = _bound
    folder = Path(sys.argv[1])
    server = MilvusServer()
    ports = _ports(folder, [name for name in server.config.configurable_items if name.endswith("_port")])
    os.environ["PROXY_TIMETICKINTERVAL"] = "20"  # ms that a strongly consistent search waits for; 200 as it comes
    os.environ["ETCD_CONFIG_PATH"] = str(_etcd_settings(folder, ports["etcd_port"], ports["peer"]))
    server.config.update(**{name: port for name, port in ports.items() if name != "peer"})
    server.set_base_dir(str(folder))
    server.start()
    print(server.listen_port, server.server_proc.pid, flush=True)
    sys.stdin.read()


def _bound(self: object, port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def _ports(folder: Path, names: list[str]) -> dict[str, int]:
    """Free ones for all that the server listens on; started again on its data it finds the same."""
    file = folder / "ports.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in [*names, "peer"]]
            ports = [listener.getsockname()[1] for listener in taken]
        file.write_text(json.dumps(dict(zip([*names, "peer"], ports, strict=True))))
    return json.loads(file.read_text())


def _etcd_settings(folder: Path, client: int, peer: int) -> Path:
    """For the etcd within, which would listen on the same two ports in every server."""
    lines = {
        "listen-client-urls": f"http://127.0.0.1:{client}",
        "advertise-client-urls": f"http://127.0.0.1:{client}",
        "listen-peer-urls": f"http://127.0.0.1:{peer}",
        "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
        "initial-cluster": f"default=http://127.0.0.1:{peer}",
        "data-dir": str(folder / "data" / "etcd.data"),
    }
    file = folder / "etcd.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return file


if __name__ == "__main__":
    main()
