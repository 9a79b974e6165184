"""Requests that have begun and are not answered yet, so that what they may be using can be closed after them."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.02


class UnderWay:
    """Counted by epoch: a new one begins with every change, and older ones can only run empty.

    Requests come and go on the thread of the event loop; epochs may begin on any other.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._counts: Counter[int] = Counter()
        self._closed = threading.Event()

    @property
    def count(self) -> int:
        """Requests under way."""
        return sum(self._counts.values())

    @contextmanager
    def one(self) -> Iterator[None]:
        """While a request is answered."""
        # Whoever enters with an old epoch's number just as a new one begins looks at the models after that.
        epoch = self._epoch
        self._counts[epoch] += 1
        try:
            yield
        finally:
            self._counts[epoch] -= 1

    def after_these(self, act: Callable[[], None]) -> threading.Thread:
        """Have `act` called, on a thread of its own, once every request that has begun until now is answered."""
        self._epoch += 1
        before = self._epoch

        def wait() -> None:
            while any(count for epoch, count in list(self._counts.items()) if epoch < before):
                if self._closed.wait(POLL_S):
                    break
            act()

        waiting = threading.Thread(target=wait, name="drain", daemon=True)
        waiting.start()
        return waiting

    def close(self) -> None:
        """The server has drained: nobody is under way any more."""
        self._closed.set()
