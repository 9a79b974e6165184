"""Streams cut into entries: tars as they are and as they should not be, in pieces of any size."""

import io
import tarfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from handlers.framing import Lines, StreamBroken, Tar
from handlers.rows import File, Line, Refused
from images.decode import MAX_BYTES
from tests.index_requests import BULK, TAR, count, errors, packed, results
from tests.pictures import encode, scene
from tests.serving import JPEG, OTHER, vector_of


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_files_of_a_tar_are_rows_under_their_names(writer: httpx.Client, seeded_store: Path, format: int) -> None:
    files = {f"cats/{seed}.png": encode(scene(40, 40, seed), "PNG") for seed in range(40)}
    files |= {"./dot.jpg": JPEG, "broken.jpg": JPEG[:100], "note.txt": b"hello", "empty": b"", "last.png": OTHER}
    if format != tarfile.USTAR_FORMAT:
        files |= {"deep/" * 60 + "long.jpg": JPEG, "größe 猫.jpg": JPEG}
    answer = writer.post(BULK, content=packed(files, format), headers=TAR)
    bad = {"broken.jpg": 400, "note.txt": 415, "empty": 400}
    assert results(answer) == [(name, bad.get(name, 200)) for name in files]
    assert count(writer) == len(files) - 3
    encoder = Encoder.load(seeded_store)
    for name in ("cats/31.png", "last.png"):
        stored = writer.get(f"/index/{name}").json()["vector"]
        np.testing.assert_allclose(stored, vector_of(encoder, files[name]), atol=1e-6)
    assert writer.get("/thumbnails/cats/7.png").headers["content-type"] == "image/webp"


def test_links_and_devices_are_refused_and_folders_passed_over(writer: httpx.Client) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("../../photo.jpg")  # an id, and nothing is written anywhere
        info.size = len(JPEG)
        archive.addfile(info, io.BytesIO(JPEG))
    answer = writer.post(BULK, content=buffer.getvalue(), headers=TAR)
    refused = [(name, 415) for name in ("link", "hard", "device", "pipe")]
    assert results(answer) == [*refused, ("../../photo.jpg", 200)]
    assert "a symbolic link" in errors(answer)[0]


def test_a_tar_that_breaks_off_or_is_none_keeps_what_came_before(writer: httpx.Client) -> None:
    whole = packed({"a.jpg": JPEG, "b.jpg": JPEG})
    second = whole.index(b"b.jpg")
    answer = writer.post(BULK, content=whole[: second + 700], headers=TAR)
    assert results(answer) == [("a.jpg", 200), (None, 400)] and "'b.jpg'" in errors(answer)[0]
    answer = writer.post(BULK, content=whole[:second] + b"\xff" * 4096, headers=TAR)
    assert results(answer) == [("a.jpg", 200), (None, 400)] and "not a tar" in errors(answer)[0]
    assert results(writer.post(BULK, content=JPEG, headers=TAR)) == [(None, 400)]
    without_end = whole.rstrip(b"\0")
    without_end += bytes(-len(without_end) % 512)
    assert results(writer.post(BULK, content=without_end, headers=TAR)) == [("a.jpg", 200), ("b.jpg", 200)]
    assert results(writer.post(BULK, content=b"", headers=TAR)) == []


# What cuts streams, without a server


@pytest.mark.parametrize("size", [1, 7, 512, 100_000])
def test_pieces_of_any_size_give_the_same_entries(size: int) -> None:
    tar = packed({"a.jpg": JPEG, "deep/" * 60 + "b": b"x" * 512, "empty": b""})
    cut = Tar()
    files = [entry for start in range(0, len(tar), size) for entry in cut.feed(tar[start : start + size])]
    assert [*files, *cut.end()] == [File("a.jpg", JPEG), File("deep/" * 60 + "b", b"x" * 512), File("empty", b"")]
    text = b'{"a": 1}\n\n  \n{"b": 2}\nrest'
    lines = Lines()
    found = [entry for start in range(0, len(text), size) for entry in lines.feed(text[start : start + size])]
    assert [*found, *lines.end()] == [Line(1, b'{"a": 1}'), Line(4, b'{"b": 2}'), Line(5, b"rest")]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_file_beyond_the_limit_is_passed_over_without_being_held() -> None:
    cut = Tar()
    (refused,) = cut.feed(header("huge", MAX_BYTES + 1))
    assert isinstance(refused, Refused) and (refused.id, refused.status) == ("huge", 413)
    for _ in range(MAX_BYTES // 2**20):
        assert list(cut.feed(bytes(2**20))) == []
        assert len(cut._held) == 0
    assert list(cut.feed(bytes(512) + header("next", 0))) == [File("next", b"")]


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (header("x", 2**40, tarfile.XHDTYPE), "65536"),
        (header("x", 2**40, tarfile.GNUTYPE_LONGNAME), "65536"),
        (header("x", 512, tarfile.GNUTYPE_SPARSE), "sparse"),
        (header("x", 20, tarfile.XHDTYPE) + b"99 path=short\n".ljust(512, b"\0"), "extended header"),
        (header("x", 20, tarfile.XHDTYPE) + b"x path=a\n".ljust(512, b"\0"), "extended header"),
        (header("x", 22, tarfile.XHDTYPE) + b"22 GNU.sparse.major=1\n".ljust(512, b"\0"), "sparse"),
        (header("x", 11, tarfile.XHDTYPE) + b"11 size=-1\n".ljust(512, b"\0") + header("y", 5), "sparse or damaged"),
        (header("x", 10, tarfile.XHDTYPE) + b"10 size=x\n".ljust(512, b"\0") + header("y", 5), "not a tar"),
        (b"\x1f\x8b" + bytes(510), "not a tar"),
    ],
)
def test_a_tar_that_cannot_be_followed_is_given_up(stream: bytes, word: str) -> None:
    with pytest.raises(StreamBroken, match=word):
        list(Tar().feed(stream))


def test_a_name_that_is_no_text_fails_alone() -> None:
    stream = header("x", 0).replace(b"x", b"\xff", 1)
    total = sum(stream) - sum(stream[148:156]) + 8 * 32
    stream = stream[:148] + b"%06o\0 " % total + stream[156:]
    (refused,) = Tar().feed(stream)
    assert isinstance(refused, Refused) and (refused.id, refused.status) == ("\ufffd", 400)
