"""Five ports in a row, and who can reach them."""

import socket

import pytest

from handlers.torchserve.listen import PORTS, ListenError, is_loopback, reserve


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("host", ["::1", "no such host", ""])
def test_an_address_that_torchserve_cannot_take_is_refused_by_name(host: str) -> None:
    with pytest.raises(ListenError, match="IPv4"):
        is_loopback(host)


def test_port_0_finds_five_free_ports_in_a_row() -> None:
    first = reserve("127.0.0.1", 0)
    for port in range(first, first + PORTS):
        socket.create_server(("127.0.0.1", port)).close()


def test_a_taken_port_among_the_five_is_named() -> None:
    first = reserve("127.0.0.1", 0)
    with (
        socket.create_server(("127.0.0.1", first + 2)),
        pytest.raises(ListenError, match=rf"127\.0\.0\.1:{first + 2} .*in use.*5 in a row"),
    ):
        reserve("127.0.0.1", first)
