"""The checksum that covers a row, its vector included."""

import zlib


def row_checksum(
    key: int,
    seq: int,
    name: str,
    blob: bytes | None,
    label: str | None,
    document: str | None,
    content: bytes | None,
) -> int:
    """CRC-32 of everything in a row."""
    digest = "" if content is None else content.hex()
    text = f"{key}\0{seq}\0{name}\0{label or ''}\0{document or ''}\0{digest}"
    return zlib.crc32(blob or b"", zlib.crc32(text.encode(errors="replace")))


def sealed(
    key: int,
    seq: int,
    name: str,
    blob: bytes | None,
    label: str | None,
    document: str | None,
    content: bytes | None,
) -> tuple[int, int, str, str | None, str | None, bytes | None, int, int]:
    """The columns of a row in `rows`; without a vector it is a tombstone."""
    checksum = row_checksum(key, seq, name, blob, label, document, content)
    return key, seq, name, label, document, content, int(blob is None), checksum
