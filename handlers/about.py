"""What every answer says of itself: the id of its request, and where its time went."""

import re
from collections.abc import Mapping
from itertools import count
from secrets import token_hex

REQUEST_ID = re.compile(rb"[!-~]{1,64}")

Headers = dict[bytes, bytes]
HeaderList = tuple[tuple[bytes, bytes], ...]


def request_id(headers: Headers) -> str:
    """The client's own where it has sent one that a log can hold, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and REQUEST_ID.fullmatch(given):
        return given.decode()
    return new_id()


def new_id() -> str:
    """A request's id: unlike that of any other request of any process."""
    return f"{_PROCESS}-{next(_NUMBERS):x}"


_PROCESS = token_hex(4)
_NUMBERS = count(1)


def about(request: str, seconds: float, timing_ms: Mapping[str, float]) -> HeaderList:
    """The headers that every answer carries: Server-Timing (W3C), milliseconds by stage, and the request's id."""
    timing = server_timing({**timing_ms, "total": seconds * 1e3})
    return (b"server-timing", timing.encode()), (b"x-request-id", request.encode())


def server_timing(timing_ms: Mapping[str, float]) -> str:
    """Milliseconds by stage as the header Server-Timing has them."""
    return ", ".join([f"{stage};dur={ms:.3f}" for stage, ms in timing_ms.items()])
