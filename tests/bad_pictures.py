"""Pictures that no camera takes: files that lie about themselves, swell when unpacked, or are not what they seem."""

import struct
import zlib
from collections.abc import Iterable
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from images.decode import MAX_BYTES
from tests.pictures import encode, scene

PHOTO = scene(60, 44)
CLEAR = PHOTO.convert("RGBA")  # with more or less of it to see
CLEAR.putalpha(scene(60, 44, seed=1).convert("L"))
GREY, RGB = 0, 2  # a PNG's colour types

# PNG, by its chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, with its right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: bytes = b"", bits: int = 1, colour: int = GREY, extra: Iterable[bytes] = ()
) -> bytes:
    """A PNG of these dimensions, whatever stands in it. rows: each behind its filter; extra: chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@cache
def bomb() -> bytes:
    """169 megapixels in some 20 KB."""
    return png(13000, 13000, bytes(13000 * (1 + 13000 // 8)))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """The photo as a PNG with one more chunk behind its header."""
    file = encode(PHOTO, "PNG")
    return file[:33] + chunk(kind, data) + file[33:]


@cache
def inflating(kind: bytes, keyword: bytes, size: int = 100 << 20) -> bytes:
    """The photo as a PNG with a compressed chunk, zTXt or iCCP, that inflates to `size` bytes."""
    deflate = zlib.compressobj(9)
    piece = bytes(1 << 20)
    packed = b"".join(deflate.compress(piece) for _ in range(size >> 20)) + deflate.flush()
    return with_chunk(kind, keyword + b"\0\0" + packed)


def sixteen_bit_colour() -> bytes:
    """The photo as a PNG of 16 bits a sample; the low bytes are noise."""
    high = np.asarray(PHOTO).astype(">u2") << 8
    samples = high | np.random.default_rng(0).integers(0, 256, high.shape, np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(*PHOTO.size, rows, bits=16, colour=RGB)


def sixteen_bit_grey() -> bytes:
    """The photo as a grey PNG of 16 bits a sample; the low bytes are noise."""
    high = np.asarray(PHOTO.convert("L")).astype(np.uint16) << 8
    return encode(Image.fromarray(high | np.random.default_rng(0).integers(0, 256, high.shape, np.uint16)), "PNG")


def transparent_palette() -> bytes:
    """The photo as a PNG of 64 colours, one of them transparent and others a little."""
    return encode(PHOTO.quantize(64), "PNG", transparency=bytes(range(0, 256, 16)))


def wrong_checksum() -> bytes:
    """The photo as a PNG whose header does not have its checksum."""
    file = bytearray(encode(PHOTO, "PNG"))
    file[29] ^= 1
    return bytes(file)


@cache
def surplus_pixels() -> bytes:
    """The photo as a PNG whose compressed pixels go on for 100 MB behind its last row."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(PHOTO))
    return png(*PHOTO.size, rows + bytes(100 << 20), bits=8, colour=RGB)


# Headers alone


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG that claims these dimensions."""
    data = bytearray(encode(Image.new("RGB", (120, 100))))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    """A GIF whose screen claims these dimensions."""
    data = bytearray(encode(Image.new("RGB", (1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_frame(width: int, height: int) -> bytes:
    """A GIF whose first frame claims to be larger than its screen."""
    data = bytearray(encode(Image.new("RGB", (120, 100), (1, 2, 3)), "GIF"))
    start = data.index(b",\0\0\0\0")
    data[start + 5 : start + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    """A WebP that ends behind its canvas."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides


def webp_of_one_colour(width: int = 8192, height: int = 8191) -> bytes:
    """A lossless WebP of 34 bytes, whole and sound; by default of nearly 64 Mi pixels, which Pillow makes 1 GB of."""
    sides = (height - 1 << 14 | width - 1).to_bytes(4, "little")
    return b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/" + sides + b"\x07\x10\x11\xfd\x0f\x44\x44\xff\x03"


# Many frames


def animated(format: str, **options: object) -> bytes:
    """The photo, and behind it two other frames."""
    others = [scene(*PHOTO.size, seed) for seed in (1, 2)]
    return encode(PHOTO, format, save_all=True, append_images=others, duration=50, **options)


@cache
def many_frames(count: int = 50_000) -> bytes:
    """A GIF of the photo and `count` frames of its whole screen, each of some 20 bytes."""
    first, screen = encode(PHOTO.quantize(64), "GIF"), struct.pack("<HHHHB", 0, 0, *PHOTO.size, 0)
    frame = b"," + screen + b"\x02\x02\x4c\x01\x00"
    return first.removesuffix(b";") + frame * count + b";"


def countless_frames() -> bytes:
    """The photo as an APNG that claims two thousand million frames."""
    return with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))


# Polyglots


def jpeg_and(what: bytes) -> bytes:
    """The photo as a JPEG with another file behind it."""
    return encode(PHOTO, quality=95) + what


def padded(size: int = MAX_BYTES) -> bytes:
    """The photo as a JPEG of `size` bytes, zeros behind its end."""
    data = encode(PHOTO, quality=95)
    return data + bytes(size - len(data))


# The formats that Pillow reads or writes, and akin does not take


def _first_bytes(data: bytes) -> bytes:
    return data.ljust(2048, b"\0")


def _written(format: str, mode: str = "RGB") -> bytes:
    return encode(scene(20, 20).convert(mode), format)


def _icns() -> bytes:
    small = encode(scene(16, 16), "PNG")
    entry = b"icp4" + struct.pack(">I", len(small) + 8) + small
    return b"icns" + struct.pack(">I", len(entry) + 8) + entry


def _photo_cd() -> bytes:
    return bytes(2048) + b"PCD_" + bytes(4096)


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
FOREIGN = {
    **{name: _written(name) for name in ("BMP", "DDS", "DIB", "EPS", "ICO", "JPEG2000", "PCX", "PDF", "PPM")},
    **{name: _written(name) for name in ("QOI", "SGI", "SPIDER", "TGA", "TIFF")},
    **{name: _written(name, "1") for name in ("MSP", "XBM")},
    **{name: _written(name, "P") for name in ("BLP", "PALM")},
    "AVIF": _first_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B"),
    "BUFR": _first_bytes(b"BUFR\0\0\x40\4"),
    "CUR": _first_bytes(b"\0\0\2\0\1\0\x20\x20"),
    "DCX": _first_bytes(struct.pack("<I", 0x3ADE68B1)),
    "FITS": _first_bytes(b"SIMPLE  =                    T"),
    "FLI": _first_bytes(struct.pack("<IHHHHHH", 2048, 0xAF11, 1, 20, 20, 8, 3)),
    "FPX": _first_bytes(OLE),
    "FTEX": _first_bytes(b"FTEX\0\0\0\0"),
    "GBR": _first_bytes(struct.pack(">IIIII", 28, 2, 20, 20, 3) + b"GIMP"),
    "GRIB": _first_bytes(b"GRIB\0\0\x40\1"),
    "HDF5": _first_bytes(b"\x89HDF\r\n\x1a\n"),
    "ICNS": _icns(),
    "IM": _first_bytes(b"Image type: RGB image\r\nFile size (no of images): 1\r\n"),
    "IMT": _first_bytes(b"width 20\nheight 20\n\x0c"),
    "IPTC": _first_bytes(b"\x1c\3\x3c\0\2\1\1"),
    "MCIDAS": _first_bytes(b"\0\0\0\0\0\0\0\4"),
    "MIC": _first_bytes(OLE),
    "MPEG": _first_bytes(b"\0\0\1\xb3\1\x40\x14"),
    "PCD": _photo_cd(),
    "PIXAR": _first_bytes(b"\x80\xe8\0\0"),
    "PSD": _first_bytes(b"8BPS\0\1\0\0\0\0\0\0\0\3"),
    "SUN": _first_bytes(struct.pack(">I", 0x59A66A95)),
    "WMF": _first_bytes(b"\xd7\xcd\xc6\x9a\0\0"),
    "XPM": _first_bytes(b'/* XPM */\nstatic char *x[] = {"1 1 1 1"};'),
    "XVTHUMB": _first_bytes(b"P7 332\n#XVVERSION:Version 2.28\n#END_OF_COMMENTS\n20 20 255\n"),
}


def pillow_would_take(name: str, data: bytes) -> bool:
    """Whether Pillow's plugin of that name, if it can read at all, does not turn these bytes away unread."""
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    return accept is None or bool(accept(data[:16]))


# What the unusual ones look like


def plain(image: Image.Image) -> bytes:
    """An RGB picture as a PNG without anything else in it."""
    return encode(image.convert("RGB"), "PNG")


def on_white(image: Image.Image) -> bytes:
    """A transparent picture over white, as a plain PNG."""
    white = Image.new("RGBA", image.size, "white")
    return plain(Image.alpha_composite(white, image.convert("RGBA")))


def upright(data: bytes) -> Image.Image:
    """What Pillow makes of it, turned as its EXIF says."""
    return ImageOps.exif_transpose(Image.open(BytesIO(data)))


def seen(data: bytes, mode: str = "RGB") -> Image.Image:
    """What Pillow makes of a file's first picture, turned as it lies."""
    with Image.open(BytesIO(data)) as image:
        return image.convert(mode)
