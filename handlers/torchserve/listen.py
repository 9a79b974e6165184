"""Where TorchServe listens: five ports in a row, and whether others can reach them."""

import ipaddress
import socket
from contextlib import ExitStack

PORTS = 5
TRIES = 100


class ListenError(Exception):
    """An address that cannot be listened on."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    return ipaddress.ip_address(_resolve(host)).is_loopback


def reserve(host: str, port: int) -> int:
    """The first of five consecutive ports that are free right now: `port`, or with 0 any."""
    if port:
        _try_all(host, port)
        return port
    for _ in range(TRIES):
        with socket.create_server((_resolve(host), 0)) as found:
            first = int(found.getsockname()[1])
        try:
            _try_all(host, first)
        except (ListenError, OverflowError):
            continue
        return first
    raise ListenError(f"no {PORTS} free ports in a row on {host}; choose them: --port")


def _try_all(host: str, first: int) -> None:
    with ExitStack() as listeners:
        for port in range(first, first + PORTS):
            address = (_resolve(host) if port == first else "127.0.0.1", port)
            try:
                listeners.enter_context(socket.create_server(address))
            except OSError as error:
                raise ListenError(
                    f"cannot listen on {address[0]}:{port} ({error.strerror}); choose another --port: "
                    f"{PORTS} in a row must be free"
                ) from error


def _resolve(host: str) -> str:
    try:
        if host:  # the empty name would stand for every address
            return socket.gethostbyname(host)
    except (OSError, UnicodeError):
        pass
    raise ListenError(f"--host {host!r} is no IPv4 address or name of one; TorchServe takes no other")
