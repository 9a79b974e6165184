"""A stream of any length cut into its entries as it comes: the lines of NDJSON, the files of a tar.

Nothing touches the disk, and no entry is held beyond its limit. Each class is fed pieces of the stream and yields
what has become whole.
"""

import tarfile
from collections.abc import Iterator
from typing import Protocol

from handlers.rows import MAX_ROW_BYTES, File, Line, Refused
from handlers.service import RequestError
from images.decode import MAX_BYTES

Entry = Line | File | Refused
BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 64 << 10  # of a name that does not fit into its block
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
NOT_FILES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
WITHOUT_DATA = (*NOT_FILES, tarfile.DIRTYPE)  # whatever size their headers name
ABOUT_ALL_OR_LINKS = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
SKIPPED = (*ABOUT_ALL_OR_LINKS, tarfile.DIRTYPE)


class StreamBroken(RequestError):
    """What follows cannot be cut into entries."""


class Framing(Protocol):
    """One way to cut a stream."""

    def feed(self, data: bytes) -> Iterator[Entry]:
        """The entries that `data` completes; raises `StreamBroken`."""

    def end(self) -> Iterator[Entry]:
        """What the end of the stream completes; raises `StreamBroken` where it ends within an entry."""


class Lines:
    """NDJSON; empty lines are passed over."""

    def __init__(self) -> None:
        self._number = 1
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Entry]:
        *ends, rest = data.split(b"\n")
        for piece in ends:
            self._keep(piece)
            yield from self.end()
            self._number += 1
        self._keep(rest)

    def end(self) -> Iterator[Entry]:
        line, size = b"".join(self._pieces), self._size
        self._pieces, self._size = [], 0
        if size > MAX_ROW_BYTES:
            reason = f"line {self._number} has {size} bytes; the limit is {MAX_ROW_BYTES}: send a smaller image"
            yield Refused(None, 413, reason)
        elif line.strip():
            yield Line(self._number, line)

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= MAX_ROW_BYTES:
            self._pieces.append(piece)
        else:
            self._pieces = []


class Tar:
    """A plain tar as GNU, BSD and Python write it (POSIX.1-2001 and GNU long names); folders are passed over."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._wanted = BLOCK  # bytes until the present piece is whole: a header, or an entry's padded data
        self._keeping = True
        self._info: tarfile.TarInfo | None = None  # the entry whose data is being read; None: a header is
        self._long: dict[str, str] = {}  # what the next header has no room for
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Entry]:
        at = 0
        while at < len(data) and not self._ended:
            piece = data[at : at + self._wanted]
            at += len(piece)
            self._wanted -= len(piece)
            if self._keeping:
                self._held += piece
            if not self._wanted:
                yield from self._whole()

    def end(self) -> Iterator[Entry]:
        # Some writers leave out the two empty blocks at the end.
        if not self._ended and (self._info is not None or self._held or self._long):
            what = f"the entry {self._info.name!r}" if self._info is not None else "a header"
            raise StreamBroken(400, f"the tar ends within {what}; send the rest again")
        yield from ()

    def _whole(self) -> Iterator[Entry]:
        """A header or an entry's data is complete: what it is, and what comes next."""
        held, info = bytes(self._held), self._info
        kept = self._keeping
        self._expect_header()
        if info is not None:
            if kept:
                yield from self._entry(info, held[: info.size])
        elif held.count(0) == BLOCK:
            self._ended = True
        else:
            yield from self._header(held)

    def _header(self, block: bytes) -> Iterator[Entry]:
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if info.type not in (*LONG_NAMES, *ABOUT_ALL_OR_LINKS):
                info.name = self._long.get("path", info.name)
                info.size = int(self._long.get("size", info.size))
                self._long = {}
        except (tarfile.HeaderError, ValueError) as error:
            raise StreamBroken(
                400, f"this is not a tar, or a damaged one ({error}); send a plain, whole tar"
            ) from error
        if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
            raise StreamBroken(400, f"the tar's entry {_shown(info.name)} is sparse or damaged; send plain files")
        size = 0 if info.type in WITHOUT_DATA else info.size
        if info.type in LONG_NAMES:
            if size > MAX_HEADER_BYTES:
                raise StreamBroken(400, f"a name in the tar has {size} bytes; the limit is {MAX_HEADER_BYTES}")
        elif info.type not in SKIPPED and (fault := _fault(info)):
            yield fault
            self._expect_data(info, size, keep=False)
            return
        if size:
            self._expect_data(info, size, keep=info.type not in SKIPPED)
        elif info.isreg():
            yield from self._entry(info, b"")

    def _entry(self, info: tarfile.TarInfo, data: bytes) -> Iterator[Entry]:
        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._long["path"] = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif info.type in LONG_NAMES:
            self._long |= _pax(data)
        else:
            yield File(info.name, data)

    def _expect_header(self) -> None:
        self._held.clear()
        self._info, self._wanted, self._keeping = None, BLOCK, True

    def _expect_data(self, info: tarfile.TarInfo, size: int, keep: bool) -> None:
        if size:
            self._info, self._wanted, self._keeping = info, -(-size // BLOCK) * BLOCK, keep


def _fault(info: tarfile.TarInfo) -> Refused | None:
    """Why an entry is not taken."""
    if not info.isreg():
        kind = NOT_FILES.get(info.type, f"of type {info.type!r}")
        return Refused(_shown(info.name), 415, f"the entry is {kind}; send the file itself")
    if info.size > MAX_BYTES:
        return Refused(_shown(info.name), 413, f"{info.size} bytes are more than the {MAX_BYTES} allowed; send less")
    try:
        info.name.encode()
    except UnicodeEncodeError:
        return Refused(_shown(info.name), 400, "its name is not valid UTF-8; rename the file")
    return None


def _shown(name: str) -> str:
    """A name that any JSON can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _pax(data: bytes) -> dict[str, str]:
    """Path and size from the records of an extended header, each `LENGTH KEY=VALUE` and a line break."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or len(digits) > 6 or not len(digits) + 1 < int(digits) <= len(data):
            raise StreamBroken(400, "the tar has a damaged extended header; send a plain, whole tar")
        record, data = data[len(digits) + 1 : int(digits) - 1], data[int(digits) :]
        key, _, value = record.partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise StreamBroken(400, "the tar holds sparse files; send plain files")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
    return found
