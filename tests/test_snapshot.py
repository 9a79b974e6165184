"""A snapshot is whole and ours, or it is not used, whatever happened to its bytes."""

import hashlib
import json
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index import snapshot
from index.base import Base
from index.documents import Documents
from index.errors import GalleryError, GalleryFull, GalleryReadOnly
from index.flat import Entry
from index.plan import empty_index
from index.snapshot import FILE_NAME, Owner
from tests.acceleration import DIGEST, DIMENSION, FACTORIES, random_rows

OWNER = Owner("0123456789abcdef" * 2, DIGEST, DIMENSION)
LAST_SEQ = 900
TRAILER = 32 + 4  # the checksum, and the length of the header


def base_of(rows: int, factory: str = "SQ8", seed: int = 0) -> Base:
    faiss.omp_set_num_threads(1)
    vectors = random_rows(max(rows, 700), seed)
    index = empty_index(factory, DIMENSION)
    index.train(vectors)
    if rows:
        index.add(vectors[:rows])
    seqs = np.random.default_rng(seed).permutation(LAST_SEQ)[:rows] + 1
    seqs[3:5] = 0
    documents = Documents.pack(Entry(f"ä/{row}.jpg", "horse" * (row % 2), '{"n": 1}') for row in range(rows))
    return Base(index, factory, np.arange(1, 3 * rows + 1, 3), seqs, documents, LAST_SEQ - 100)


def read(folder: Path, owner: Owner = OWNER, last_seq: int = LAST_SEQ) -> Base | None:
    return snapshot.read(folder, owner, lambda: last_seq)


def told(base: Base) -> dict[str, Any]:
    """All there is to know of it."""
    return {
        "index": faiss.serialize_index(base.index).tobytes(),
        "keys": base.keys.tolist(),
        "seqs": base.seqs.tolist(),
        "bounds": base.documents.bounds.tolist(),
        "text": base.documents.text,
        "positions": base.positions.tolist(),
        "rest": (base.factory, base.last_seq),
    }


def resealed(whole: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """With another header, and a checksum that fits."""
    (length,) = struct.unpack("<I", whole[-TRAILER:-32])
    header = json.loads(whole[-TRAILER - length : -TRAILER])
    change(header)
    line = json.dumps(header).encode()
    body = whole[: -TRAILER - length] + line + struct.pack("<I", len(line))
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("rows", [0, 1, 700])
@pytest.mark.parametrize("factory", FACTORIES)
def test_what_was_written_is_read_back_whole(tmp_path: Path, factory: str, rows: int) -> None:
    base = base_of(rows, factory)
    header = snapshot.write(tmp_path, OWNER, base)
    found = read(tmp_path)
    assert found is not None and told(found) == told(base)
    queries = random_rows(3, 1)
    if rows:
        np.testing.assert_array_equal(found.search(queries, 5, None), base.search(queries, 5, None))
    assert snapshot.fault(tmp_path, OWNER, lambda: LAST_SEQ) is None
    assert (header["rows"], header["last_seq"], header["factory"]) == (rows, LAST_SEQ - 100, factory)
    assert snapshot.describe(tmp_path) == {
        **{key: header[key] for key in ("last_seq", "written", "factory", "rows")},
        "bytes": (tmp_path / FILE_NAME).stat().st_size,
    }
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_no_snapshot_is_none_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path) is snapshot.fault(tmp_path, OWNER, lambda: 0) is snapshot.describe(tmp_path) is None
    assert snapshot.version(tmp_path) is None
    snapshot.remove(tmp_path)
    assert caplog.text == ""


@contextmanager
def damaged(folder: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[bytes, str], None]]:
    """Gives a function that puts these bytes in its place and sees that they are refused for that reason."""
    file = folder / FILE_NAME

    def refused(content: bytes, why: str) -> None:
        file.write_bytes(content)
        caplog.clear()
        assert read(folder) is None
        (record,) = caplog.records
        assert f"{file} is not used and will be built anew: {why}" in record.getMessage()
        reason = snapshot.fault(folder, OWNER, lambda: LAST_SEQ)
        assert reason is not None and why in reason
        snapshot.describe(folder)  # says something or nothing, and never fails

    yield refused


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot.write(tmp_path, OWNER, base_of(40))
    whole = (tmp_path / FILE_NAME).read_bytes()
    (length,) = struct.unpack("<I", whole[-TRAILER:-32])
    random = np.random.default_rng(0)
    head = range(200)  # of the FAISS index
    foot = range(len(whole) - TRAILER - length, len(whole))
    anywhere = random.integers(len(whole), size=200).tolist()
    with damaged(tmp_path, caplog) as refused:
        for place in [*head, *foot, *anywhere]:
            content = bytearray(whole)
            content[place] ^= 1 << int(random.integers(8))
            refused(bytes(content), "its bytes do not fit its checksum")
    (tmp_path / FILE_NAME).write_bytes(whole)
    assert read(tmp_path) is not None


def test_missing_and_added_bytes_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot.write(tmp_path, OWNER, base_of(40))
    whole = (tmp_path / FILE_NAME).read_bytes()
    random = np.random.default_rng(0)
    with damaged(tmp_path, caplog) as refused:
        for length in range(TRAILER):
            refused(whole[:length], f"it has {length} bytes only")
        for length in [
            TRAILER,
            TRAILER + 1,
            *range(len(whole) - 40, len(whole)),
            *random.integers(40, len(whole), 60),
        ]:
            refused(whole[:length], "its bytes do not fit its checksum")
            refused(whole[-length:], "its bytes do not fit its checksum")  # the beginning is missing
        for more in (b"\0", b"\n", bytes(32), bytes(5000), whole[-32:], whole):
            refused(whole + more, "its bytes do not fit its checksum")
            refused(more + whole, "its bytes do not fit its checksum")
        for place in random.integers(len(whole), size=30).tolist():
            refused(whole[:place] + whole[place + 1 :], "its bytes do not fit its checksum")
        middle = len(whole) // 2
        refused(whole[middle:] + whole[:middle], "its bytes do not fit its checksum")
        refused(bytes(len(whole)), "its bytes do not fit its checksum")


def test_a_header_that_says_anything_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is read before the checksum is compared by nothing but `describe`, which must not fail of it either."""
    file = tmp_path / FILE_NAME
    for header in (b"{", b"[]", b"7", b'"x"', b"null", b"{}", b'{"last_seq": 1}', b"\xff\xfe", b""):
        for length in (len(header), 0, 1, 2**31, 2**32 - 1):
            file.write_bytes(b"body" + header + struct.pack("<I", length) + bytes(32))
            assert snapshot.describe(tmp_path) is None
            assert read(tmp_path) is None
    assert len(caplog.records) == 45


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a later format": (lambda header: header.update(format=2), "its format is 2, not 1"),
    "no format": (lambda header: header.pop("format"), "its format is None, not 1"),
    "another model": (lambda header: header.update(model_digest="b" * 64), "it is of model bbbbbbbbbbbb, not aaaaaa"),
    "another dimension": (lambda header: header.update(dimension=8), "it is of another gallery"),
    "another gallery": (lambda header: header.update(identity="f" * 32), "it is of another gallery"),
    "a later state": (lambda header: header.update(knows=901), "it knows change 901, the truth only 900"),
    "more rows": (lambda header: header.update(rows=41), ""),
    "fewer rows": (lambda header: header.update(rows=39), ""),
    "less text": (lambda header: header.update(text_bytes=3), ""),
    "nothing of what it knows": (lambda header: header.pop("knows"), "'knows'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_whole_snapshot_that_is_not_ours_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    change, why = FOREIGN[case]
    snapshot.write(tmp_path, OWNER, base_of(40))
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(resealed(whole, lambda header: None))
    assert read(tmp_path) is not None
    (tmp_path / FILE_NAME).write_bytes(resealed(whole, change))
    assert read(tmp_path) is None
    assert f"is not used and will be built anew: {why}" in caplog.text
    reason = snapshot.fault(tmp_path, OWNER, lambda: LAST_SEQ)  # which looks at the header and the checksum only
    assert reason is None if why == "" else why in str(reason)


def test_what_owner_and_last_seq_are_asked_with_decides(tmp_path: Path) -> None:
    snapshot.write(tmp_path, OWNER, base := base_of(40))
    newest = int(base.seqs.max())
    assert newest > base.last_seq  # a row that came in during the build
    assert read(tmp_path, last_seq=newest) is not None and read(tmp_path, last_seq=10**12) is not None
    assert read(tmp_path, last_seq=newest - 1) is read(tmp_path, last_seq=0) is None
    for other in (
        Owner("x", DIGEST, DIMENSION),
        Owner(OWNER.identity, "b" * 64, DIMENSION),
        Owner(OWNER.identity, DIGEST, 8),
    ):
        assert read(tmp_path, other) is None


def test_a_folder_in_its_place_is_no_snapshot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert read(tmp_path) is snapshot.describe(tmp_path) is None
    assert "is not used and will be built anew" in caplog.text
    assert snapshot.fault(tmp_path, OWNER, lambda: 0) is not None
    with pytest.raises(GalleryError, match=r"snapshot\.akin"):
        snapshot.write(tmp_path, OWNER, base_of(40))
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the kernel ends the process
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_disk_that_is_full_at_any_byte_leaves_the_former_one_and_nothing_else(tmp_path: Path, factory: str) -> None:
    small, large = base_of(40, factory), base_of(700, factory, seed=1)
    snapshot.write(tmp_path, OWNER, small)
    former = (tmp_path / FILE_NAME).read_bytes()
    snapshot.write(tmp_path, OWNER, large)
    size = (tmp_path / FILE_NAME).stat().st_size
    snapshot.write(tmp_path, OWNER, small)
    former = (tmp_path / FILE_NAME).read_bytes()
    for room in [0, 1, 100, *np.linspace(4096, size - 1, 20).astype(int).tolist()]:
        with room_for(room), pytest.raises(GalleryFull, match=r"snapshot\.akin cannot be written") as full:
            snapshot.write(tmp_path, OWNER, large)
        assert full.value.status == 507
        assert (tmp_path / FILE_NAME).read_bytes() == former
        assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    with room_for(2 * size):
        snapshot.write(tmp_path, OWNER, large)
    found = read(tmp_path)
    assert found is not None and told(found) == told(large)


@pytest.mark.parametrize("step", ["fsync", "replace", "sync_folder"])
def test_an_error_at_the_end_of_writing_leaves_a_whole_one_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    snapshot.write(tmp_path, OWNER, base_of(40))
    former = (tmp_path / FILE_NAME).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(5, os.strerror(5))

    name = {"fsync": "os.fsync", "replace": "pathlib.Path.replace", "sync_folder": "index.snapshot.sync_folder"}[step]
    with monkeypatch.context() as patched:
        patched.setattr(name, fail)
        with pytest.raises(GalleryError, match="Input/output error"):
            snapshot.write(tmp_path, OWNER, base_of(60))
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    if step != "sync_folder":  # where the new one has its place already
        assert (tmp_path / FILE_NAME).read_bytes() == former
    assert read(tmp_path) is not None


def test_a_write_that_is_interrupted_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        snapshot.write(tmp_path, OWNER, base_of(40))
    assert list(tmp_path.iterdir()) == []


def test_the_file_and_the_folder_are_synced_before_and_after_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix or "folder")
        fsync(descriptor)

    def replaced(part: Path, file: Path) -> Path:
        done.append("replace")
        return replace(part, file)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    snapshot.write(tmp_path, OWNER, base_of(40))
    assert done == [".part", "replace", "folder"]


def test_another_snapshot_has_another_version_and_others_may_read_it(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        snapshot.write(tmp_path, OWNER, base_of(40))
    finally:
        os.umask(mask)
    first = snapshot.version(tmp_path)
    assert first == snapshot.version(tmp_path) is not None
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o644
    snapshot.write(tmp_path, OWNER, base_of(40))
    assert snapshot.version(tmp_path) not in (first, None)


def test_a_reader_that_has_it_open_reads_it_whole_while_another_takes_its_place(tmp_path: Path) -> None:
    snapshot.write(tmp_path, OWNER, small := base_of(40))

    def replace_first() -> int:  # between the comparison of the checksum and the reading
        snapshot.write(tmp_path, OWNER, base_of(60, seed=1))
        return LAST_SEQ

    found = snapshot.read(tmp_path, OWNER, replace_first)
    assert found is not None and told(found) == told(small)
    again = read(tmp_path)
    assert again is not None and len(again) == 60


def test_what_killed_writers_left_can_be_removed_and_nothing_else(tmp_path: Path) -> None:
    snapshot.write(tmp_path, OWNER, base_of(40))
    for name in (f"{FILE_NAME}.0a1b2c3d.part", f"{FILE_NAME}.ffffffff.part", "gallery.sqlite", "other.part"):
        (tmp_path / name).touch()
    snapshot.remove_parts(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gallery.sqlite", "other.part", FILE_NAME]
    snapshot.remove(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gallery.sqlite", "other.part"]


def test_where_it_may_not_be_written_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("pathlib.Path.open", forbidden)
    with pytest.raises(GalleryReadOnly, match=r"snapshot\.akin cannot be written \(Permission denied\)"):
        snapshot.write(tmp_path, OWNER, base_of(40))
