"""Coverage-guided fuzzing of everything that takes a client's bytes apart in this process: decode above all.

    python -m tests.fuzz_decode --seconds 60 --seed 0 --corpus var/fuzz
    python -m tests.fuzz_decode --replay var/fuzz/crash-0123...

libFuzzer (atheris) mutates inputs that reached new branches of images/, handlers/, Pillow's and python-multipart's
Python. The first byte of an input chooses its target. An input that breaks a promise ends the run with 77; it is
written into the corpus folder as crash-..., oom-... or timeout-..., and the traceback is printed.
"""

import argparse
import logging
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha1
from pathlib import Path
from time import process_time
from typing import cast

import atheris

with atheris.instrument_imports(include=["images", "PIL", "handlers", "index.filters", "python_multipart"]):
    import numpy as np

    from handlers.framing import Framing, Lines, Tar
    from handlers.inline import image_of, parse_object
    from handlers.multipart import parse_multipart
    from handlers.oip import ENCODED, raw_images
    from handlers.rows import ROW_HOW_TO, Refused, draft_from_json, most_commas, parse_vector
    from handlers.service import Options, RequestError, Service, to_json
    from images.decode import ImageError, decode
    from images.spec import PreprocessSpec
    from index.errors import RowRefused
    from index.filters import Filter

from tests import fuzz_seeds
from tests.fuzz_seeds import DIMENSION

SPEC = PreprocessSpec(size=32)
REASON_CHARACTERS = 500
MAX_RSS_BYTES = 1 << 30  # of the process; 24 megapixels of WebP, which fit into 40 bytes, take half
MAX_CPU_SECONDS = 20.0  # of an input, decoded twice: instrumented, and on a busy machine
STUCK_SECONDS = 120  # on the clock, for what waits without end
MAX_INPUT_BYTES = 16 << 10
NO_SERVICE = cast(Service, None)  # files, unlike pixels, come in every size
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

Outcome = tuple[int, bytes]  # a status, and the pixels or the reason


class PromiseBroken(Exception):
    """An input for which the code does not do what it says."""


def decode_outcome(data: bytes) -> Outcome:
    """What decode makes of `data`; raises `PromiseBroken`, and whatever else than ImageError decode raises."""
    try:
        pixels = decode(data, SPEC)
    except ImageError as error:
        return _refused(error.status, error.reason, {400, 413, 415})
    if pixels.shape != (SPEC.size, SPEC.size, 3) or pixels.dtype != np.uint8:
        raise PromiseBroken(f"decode gave {pixels.dtype} of shape {pixels.shape}")
    return 200, pixels.tobytes()


def fuzz_decode(data: bytes) -> None:
    """The same twice, whatever came in between."""
    if (first := decode_outcome(data)) != (second := decode_outcome(data)):
        raise PromiseBroken(f"decoded twice: {first[0]} {first[1][:300]!r}, then {second[0]} {second[1][:300]!r}")


def fuzz_multipart(data: bytes) -> None:
    """A content type, a line break, a body."""
    content_type, _, body = data.partition(b"\n")
    try:
        form = parse_multipart(body, content_type.decode("latin-1"))
        assert form.images
        Options.parse(form.options.get("k"), form.options.get("fields"))
    except RequestError as error:
        _refused(error.status, error.reason, {400, 413})


def fuzz_base64(data: bytes) -> None:
    """An image as a string of a JSON body."""
    image = image_of(data.decode("utf-8", "replace"))
    if isinstance(image, ImageError):
        _refused(image.status, image.reason, {400, 415})


def fuzz_rows(data: bytes) -> None:
    """A JSON body of the index: a row to store, or a search's vector and filter."""
    try:
        given = parse_object(data, most_commas(DIMENSION), ROW_HOW_TO)
        if "filter" in given:
            Filter.parse(given["filter"])
            parse_vector(given.get("vector"), DIMENSION)
        else:
            draft_from_json("id", given, DIMENSION)
    except (RequestError, ImageError) as error:
        _refused(error.status, error.reason, {400, 413, 415})
    except RowRefused as error:
        _refused(error.status, str(error), {400, 413})


def fuzz_streams(data: bytes) -> None:
    """A body of /index/bulk, whole and in pieces: the cuts are the same wherever the network cuts."""
    for framing in (Lines, Tar):
        whole, pieces = (_entries(framing(), parts) for parts in ([data], _pieces(data)))
        if whole != pieces:
            raise PromiseBroken(f"{framing.__name__} cuts {whole!r:.300} from a whole, {pieces!r:.300} from pieces")


def fuzz_tensors(data: bytes) -> None:
    """The binary form of a tensor of images: how many in the first byte, then each behind its length."""
    count, body = data[:1] or b"\0", data[1:]
    try:
        images = raw_images(NO_SERVICE, ENCODED, count[0], body)
    except RequestError as error:
        _refused(error.status, error.reason, {400})
        return
    if b"".join(len(image).to_bytes(4, "little") + bytes(image) for image in images) != body:
        raise PromiseBroken(f"{count[0]} images of {body!r:.300} are taken for {images!r:.300}")


TARGETS: dict[Callable[[bytes], None], Callable[[], Iterable[bytes]]] = {
    fuzz_decode: fuzz_seeds.pictures,
    fuzz_multipart: fuzz_seeds.forms,
    fuzz_base64: fuzz_seeds.texts,
    fuzz_rows: fuzz_seeds.rows,
    fuzz_streams: fuzz_seeds.streams,
    fuzz_tensors: fuzz_seeds.tensors,
}
# Decode is what the run is about; the others have smaller spaces.
CHOICES = [fuzz_decode] * 8 + [target for target in TARGETS if target is not fuzz_decode]


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    if not data:
        return
    started = process_time()
    CHOICES[data[0] % len(CHOICES)](data[1:])
    seconds = process_time() - started
    if seconds > MAX_CPU_SECONDS:
        raise PromiseBroken(f"one input took {seconds:.1f} s of CPU; the limit is {MAX_CPU_SECONDS:.0f}")
    rss = peak_bytes()
    if rss > MAX_RSS_BYTES:
        raise PromiseBroken(f"the process came to {rss >> 20} MiB; the limit is {MAX_RSS_BYTES >> 20}")


def peak_bytes() -> int:
    """The most memory that this process has had; getrusage's begins with what the process had that started it."""
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(b"VmHWM"))


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A mutation that keeps its target; of a PNG mostly with sound checksums, which no chance would find."""
    payload = atheris.Mutate(data[1:] or b"\0", max_size - 1)
    if payload.startswith(PNG_MAGIC) and random.Random(seed).random() < 0.8:
        payload = with_sound_checksums(payload)[: max_size - 1]
    return data[:1] + payload


def with_sound_checksums(png: bytes) -> bytes:
    """Its chunks with the CRCs that they should have, up to where it is no PNG any more."""
    at, pieces = len(PNG_MAGIC), [PNG_MAGIC]
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        end = at + 8 + length
        if end + 4 > len(png):
            break
        pieces += [png[at:end], struct.pack(">I", zlib.crc32(png[at + 4 : end]))]
        at = end + 4
    return b"".join([*pieces, png[at:]])


def write_seeds(folder: Path) -> None:
    """The seeds of every target as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for target, seeds in TARGETS.items():
        for seed in seeds():
            (folder / sha1(seed).hexdigest()).write_bytes(bytes([CHOICES.index(target)]) + seed)


def _refused(status: int, reason: str, statuses: set[int]) -> Outcome:
    if status not in statuses or not 0 < len(reason) < REASON_CHARACTERS:
        raise PromiseBroken(f"refused with {status} and {len(reason)} characters: {reason[:600]!r}")
    return status, to_json(reason)  # which refuses lone surrogates


def _entries(framing: Framing, pieces: Iterable[bytes]) -> list[object]:
    entries: list[object] = []
    try:
        for piece in pieces:
            entries += framing.feed(piece)
        entries += framing.end()
    except RequestError as error:
        entries.append(_refused(error.status, error.reason, {400}))
    for entry in entries:
        if isinstance(entry, Refused):
            _refused(entry.status, entry.reason, {400, 413, 415})
            to_json(entry.id)
    return entries


def _pieces(data: bytes) -> list[bytes]:
    step = 1 + len(data) % 97
    return [data[at : at + step] for at in range(0, len(data), step)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path("var/fuzz"), help="its corpus/ grows from run to run")
    parser.add_argument("--replay", type=Path, help="one input that a run has written, instead of a run")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow warns of damage that decode forgives
    logging.disable()  # and python-multipart logs each that it refuses
    corpus, seeds = given.corpus / "corpus", given.corpus / "seeds"
    corpus.mkdir(parents=True, exist_ok=True)
    write_seeds(seeds)
    options = [
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed + 1}",  # 0 would be a random one
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={STUCK_SECONDS}",
        "-rss_limit_mb=0",  # it reads getrusage's; ours is `peak_bytes`
        f"-artifact_prefix={given.corpus}/",
        "-print_final_stats=1",
    ]
    inputs = [str(given.replay)] if given.replay else [str(corpus), str(seeds)]
    atheris.Setup([sys.argv[0], *options, *inputs], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
