"""Whether anybody has written to a gallery since one last looked: answered often, and asked of SQLite seldom."""

import sqlite3
import time
from pathlib import Path

from index.sqlite import LOCK_NAME, Reader, Stamp, named_errors, nobody_writes

TICK_NS = 100_000_000  # more than between two ticks of a file system's clock: later writes have another time


class Follower:
    """A connection that follows the changes of a file, for use by one thread at a time."""

    def __init__(self, file: Path, busy_timeout_s: float) -> None:
        """Raises errors of a gallery."""
        self._file = file
        self._busy_timeout_s = busy_timeout_s
        self._reader = Reader.open(file, busy_timeout_s)
        self._settled: Stamp | None = None  # when all that was written was published
        self._version = (0, 0)

    @property
    def connection(self) -> sqlite3.Connection:
        """The present one: `data_version` renews it where a file that was opened as one that does not change has."""
        return self._reader.connection

    def data_version(self) -> tuple[int, int]:
        """Another value after any commit to the file, by whichever process.

        SQLite says so in 5 µs, which are 50 between two searches that have emptied the caches. Files that are as they
        were when SQLite was last asked, with nobody writing, spare the question.
        """
        path = str(self._file)
        stamp = Stamp.of(path)
        if stamp == self._settled:
            return self._version
        with named_errors(self._file, self._busy_timeout_s):  # of one that is closed
            within = self.connection.in_transaction
        if within:
            return self._asked()
        if self._reader.outdated(path):
            self.close()
            self._reader = Reader.open(self._file, self._busy_timeout_s)
            self._version = (self._version[0] + 1, 0)
        self._settled = None
        if time.time_ns() - max(stamp.file_ns, stamp.log_ns) < TICK_NS:
            return self._asked()
        # A commit writes to the log first and is published after that: compare only where none is in between.
        with nobody_writes(self._file.with_name(LOCK_NAME)) as sure:
            stamp = Stamp.of(path)
            version = self._asked()
            if sure and time.time_ns() - max(stamp.file_ns, stamp.log_ns) > TICK_NS:
                self._settled = stamp
        return version

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _asked(self) -> tuple[int, int]:
        with named_errors(self._file, self._busy_timeout_s):
            (number,) = self.connection.execute("PRAGMA data_version").fetchone()
        self._version = (self._version[0], int(number))
        return self._version
