"""Decoders beside each other on one camera's photo: what each costs, what it does to the embedding, where time goes.

    python -m venv /tmp/decoders && /tmp/decoders/bin/pip install pillow numpy onnxruntime \
        simplejpeg PyTurboJPEG opencv-python-headless
    /tmp/decoders/bin/python -m load_tests.bench_decode --rounds 15     # for PyTurboJPEG: --turbojpeg libturbojpeg.so

Each goes from bytes to (size, size, 3) uint8, one thread, in turns with the others. A library that is absent is said
and left out: none of them is akin's. The embedding is compared with that of the whole picture, decoded at full size.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from encoder.session import Encoder
from images.decode import decode, resize
from images.spec import PreprocessSpec
from load_tests import report
from load_tests.arguments import at_least_one
from load_tests.photos import CAMERA_QUALITY, CAMERA_SIZE, pillow_full
from load_tests.pictures import encode, scene
from load_tests.report import Row

Decoder = Callable[[bytes, PreprocessSpec], np.ndarray]  # a file to (size, size, 3) uint8
Take = Callable[[], object]
SERVED = "Pillow, as images/decode.py does"
STUFFED, RESTARTS, END, SCAN = 0x00, range(0xD0, 0xD8), 0xD9, 0xDA  # what follows 0xFF in a JPEG
SCALED_TO = 2  # times the encoder's size is what a decoder has to leave of the shorter side


def pillow_in_one_read(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """Scaled in the DCT, the file handed over whole and not in pieces of 64 KB."""
    image = JpegImageFile(BytesIO(data))
    image.decodermaxblock = len(data)
    return resize(np.asarray(_drafted(image, "RGB", spec)), spec)


def pillow_grey(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """Scaled in the DCT without colours: no answer, but what their share is."""
    grey = np.asarray(_drafted(JpegImageFile(BytesIO(data)), "L", spec))
    return resize(np.repeat(grey[:, :, None], 3, axis=2), spec)


def pillow_reducing_gap(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """Scaled in the DCT, then reduced by a box filter, then resized."""
    image = _drafted(JpegImageFile(BytesIO(data)), "RGB", spec)
    left, top = (image.width - min(image.size)) / 2, (image.height - min(image.size)) / 2
    box = (left, top, left + min(image.size), top + min(image.size))
    size = (spec.size, spec.size)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))


def pillow_first_scans(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """As served, but of a progressive file only the scans that an eighth needs: those of the blocks' means."""
    return decode(_without_details(data), spec)


def decoders(turbojpeg: str | None) -> tuple[dict[str, Decoder], list[str]]:
    """Those that are installed, and a line on each that is not. turbojpeg: where libturbojpeg lies, if not known."""
    found: dict[str, Decoder] = {
        SERVED: decode,
        "Pillow, full size": pillow_full,
        "Pillow, in one read": pillow_in_one_read,
        "Pillow, reducing_gap 2": pillow_reducing_gap,
        "Pillow, first scans": pillow_first_scans,
        "Pillow, grey": pillow_grey,
    }
    absent = []
    for name, build in (("simplejpeg", _simplejpeg), ("turbojpeg", partial(_turbojpeg, turbojpeg)), ("cv2", _opencv)):
        try:
            found |= build()
        except (ImportError, OSError, RuntimeError) as error:  # PyTurboJPEG raises RuntimeError without its library
            absent.append(f"{name} is left out: {str(error) or type(error).__name__}")
    return found, absent


def _simplejpeg() -> dict[str, Decoder]:
    library = import_module("simplejpeg")

    def run(data: bytes, spec: PreprocessSpec, quick: bool) -> np.ndarray:
        least = SCALED_TO * spec.size
        return resize(
            library.decode_jpeg(data, fastdct=quick, fastupsample=quick, min_height=least, min_width=least), spec
        )

    return {
        "simplejpeg": partial(run, quick=False),
        "simplejpeg, fastdct and fastupsample": partial(run, quick=True),
    }


def _turbojpeg(path: str | None) -> dict[str, Decoder]:
    library = import_module("turbojpeg")
    codec = library.TurboJPEG(path)

    def run(data: bytes, spec: PreprocessSpec, flags: int) -> np.ndarray:
        eighths = max(1, -(-8 * SCALED_TO * spec.size // min(codec.decode_header(data)[:2])))
        options = {"pixel_format": library.TJPF_RGB, "scaling_factor": (min(eighths, 8), 8), "flags": flags}
        return resize(codec.decode(data, **options), spec)

    quick = library.TJFLAG_FASTDCT | library.TJFLAG_FASTUPSAMPLE
    return {"PyTurboJPEG": partial(run, flags=0), "PyTurboJPEG, fast DCT and upsampling": partial(run, flags=quick)}


def _opencv() -> dict[str, Decoder]:
    library = import_module("cv2")
    library.setNumThreads(1)

    def run(data: bytes, spec: PreprocessSpec) -> np.ndarray:
        bgr = library.imdecode(np.frombuffer(data, np.uint8), library.IMREAD_REDUCED_COLOR_8)
        return resize(np.ascontiguousarray(bgr[:, :, ::-1]), spec)

    return {"OpenCV, an eighth": run}


def stages(data: bytes, spec: PreprocessSpec) -> dict[str, Take]:
    """Pillow's way in steps, each with those before it where they cannot be done alone."""
    small = _drafted(JpegImageFile(BytesIO(data)), "RGB", spec)
    pixels = np.asarray(small)
    return {
        "open and read the header": lambda: JpegImageFile(BytesIO(data)),
        "to grey at 1/8 (Huffman, no colours)": lambda: _drafted(JpegImageFile(BytesIO(data)), "L", spec),
        "to YCbCr at 1/8 (and the colours' IDCT)": lambda: _drafted(JpegImageFile(BytesIO(data)), "YCbCr", spec),
        "to RGB at 1/8 (and the conversion)": lambda: _drafted(JpegImageFile(BytesIO(data)), "RGB", spec),
        "to RGB in full (and the whole IDCT)": lambda: JpegImageFile(BytesIO(data)).load(),
        f"resize of {small.width} × {small.height} alone": lambda: resize(pixels, spec),
    }


def compare(takes: dict[str, Take], rounds: int) -> dict[str, tuple[float, ...]]:
    """Milliseconds of every take in every round. Each round begins with another, as the first of one fares worse."""
    spent: dict[str, list[float]] = {name: [] for name in takes}
    for name in takes:
        takes[name]()  # the first one loads code and grows buffers
    names = list(takes)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = perf_counter()
            takes[name]()
            spent[name].append((perf_counter() - started) * 1e3)
    return {name: tuple(each) for name, each in spent.items()}


def rows(kind: str, data: bytes, encoder: Encoder, rounds: int, found: dict[str, Decoder]) -> list[Row]:
    """Time, ratio to what is served and cosine to the full decode of each decoder, then the stages."""
    spec = encoder.manifest.preprocess
    spent = compare({name: partial(run, data, spec) for name, run in found.items()}, rounds)
    vectors = {name: encoder.embed(run(data, spec)[None]).vectors[0] for name, run in found.items()}
    whole = encoder.embed(pillow_full(data, spec)[None]).vectors[0]
    made = []
    for name, ms in spent.items():
        ratios = tuple(one / served for one, served in zip(ms, spent[SERVED], strict=True))
        made += [
            Row(f"{kind}, {name}", "ms", ms),
            Row(f"{kind}, {name}: to what is served", "×", ratios),
            Row(f"{kind}, {name}: cosine to the full decode", "cosine", (float(vectors[name] @ whole),)),
        ]
    taken = compare(stages(data, spec), rounds)
    return made + [Row(f"{kind}, stage: {name}", "ms", ms) for name, ms in taken.items()]


def _without_details(data: bytes) -> bytes:
    """A progressive JPEG up to its first scan of AC coefficients (ITU T.81, G.1.1.1); any other file as it is."""
    at = 2
    while (at := data.find(b"\xff", at)) != -1 and (marker := data[at + 1]) != END:
        if marker == STUFFED or marker in RESTARTS:
            at += 2
            continue
        if marker == SCAN and data[at + 5 + 2 * data[at + 4]] > 0:  # its first coefficient
            return data[:at] + bytes((0xFF, END))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data


def _drafted(image: JpegImageFile, mode: str, spec: PreprocessSpec) -> JpegImageFile:
    image.draft(mode, (SCALED_TO * spec.size, SCALED_TO * spec.size))
    image.load()
    return image


def photos(size: tuple[int, int]) -> dict[str, bytes]:
    """One picture as cameras and editors write it."""
    picture = scene(*size)
    return {
        "baseline 4:2:0": encode(picture, quality=CAMERA_QUALITY),
        "baseline 4:4:4": encode(picture, quality=CAMERA_QUALITY, subsampling=0),
        "progressive": encode(picture, quality=CAMERA_QUALITY, progressive=True),
    }


def main(size: tuple[int, int] = CAMERA_SIZE) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=at_least_one, default=15)
    parser.add_argument("--photo", type=Path, help="a JPEG file in place of generated ones")
    parser.add_argument("--turbojpeg", help="path of libturbojpeg, where PyTurboJPEG does not find it")
    parser.add_argument("--model-store", type=Path, default=Path("model_store"))
    parser.add_argument("--name", default="encoder")
    chosen = parser.parse_args()
    encoder = Encoder.load(chosen.model_store, chosen.name)
    found, absent = decoders(chosen.turbojpeg)
    files = {chosen.photo.name: chosen.photo.read_bytes()} if chosen.photo else photos(size)
    for kind, data in files.items():
        print(f"{kind}: {len(data):,} bytes")
        print(report.table(rows(kind, data, encoder, chosen.rounds, found)), end="\n\n")
    print("\n".join(absent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
