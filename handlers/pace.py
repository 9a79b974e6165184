"""How fast refusals go out, so that being asked too often costs little."""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic


class Pace:
    """When refusals may go out: the first at once, those that follow at most so many a second.

    A client that comes back the moment it is refused would otherwise take the time of those who are served; so it
    waits for its refusal as others wait for their answer. For the thread of the event loop alone.
    """

    def __init__(self, per_second: float) -> None:
        self._gap_s = 1 / per_second
        self._next = 0.0  # monotonic: when the next one may go
        self._line: deque[tuple[asyncio.Future[None], Callable[[], bool]]] = deque()

    async def turn(self, gone: Callable[[], bool] = lambda: False) -> None:
        """Return when this one may go. gone: whether its client has left, who then is in nobody's way."""
        now = monotonic()
        if not self._line and now >= self._next:
            self._next = now + self._gap_s
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._line.append((turn, gone))
        if len(self._line) == 1:
            loop.call_later(max(0.0, self._next - now), self._call)
        await turn

    def _call(self) -> None:
        """Let those at the head of the line go whose time has come."""
        now = monotonic()
        while self._line and self._next <= now:
            turn, gone = self._line.popleft()
            if not turn.done():  # else cancelled
                turn.set_result(None)
                if not gone():
                    self._next += self._gap_s
        if self._line:
            asyncio.get_running_loop().call_later(max(0.0, self._next - now), self._call)
