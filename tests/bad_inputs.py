"""The table of bad inputs: one row a request, with the status and the reason that it gets from each front.

The rows of pictures are here; they reach TorchServe's handler too, which must answer as the native front does. Those
of HTTP are in bad_http.py, those of JSON, rows of the index and tensors in bad_json.py.
"""

import gzip
from collections.abc import Callable
from functools import partial

from PIL import Image

from images.decode import MAX_BYTES, MAX_PIXELS, MAX_SIDE
from tests import bad_pictures as bad
from tests.bad_case import SAME, Case, http
from tests.bad_http import HTTP
from tests.bad_json import JSON
from tests.bad_pictures import PHOTO, on_white, plain
from tests.pictures import encode, encode_with_orientation, scene
from tests.serving import JPEG

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
SCRIPT = b"<script>alert(document.domain)</script>"
ZIP = b"PK\x03\x04" + bytes(60) + b"PK\x05\x06" + bytes(18)


def refused(name: str, picture: bytes | Callable[[], bytes], status: int, *words: str) -> Case:
    """A picture that neither front takes."""
    make = picture if callable(picture) else partial(bytes, picture)
    return Case(name, lambda: http(make()), status, words, SAME)


def taken(name: str, picture: bytes | Callable[[], bytes], like: bytes, cosine: float = 1.0) -> Case:
    """An unusual picture, and the plain one that it looks like."""
    make = picture if callable(picture) else partial(bytes, picture)
    return Case(name, lambda: http(make()), 200, ("embedding",), SAME, like=like, cosine=cosine)


def halved(format: str, **options: object) -> Case:
    data = encode(scene(100, 75), format, **options)
    name = " ".join([*options, format])
    return refused(f"half a {name}", data[: len(data) // 2], 400, f"damaged {format}", "send a whole one")


def oriented(number: int) -> Case:
    data = encode_with_orientation(PHOTO, number, quality=95)
    return taken(f"orientation {number}", data, plain(bad.upright(data)), 0.999)


BOMBS = (
    refused("169 megapixels in 20 KB", bad.bomb, 413, "13000 x 13000", str(MAX_PIXELS)),
    refused("a PNG of 65000 x 65000", bad.png(65000, 65000), 413, "65000 x 65000", str(MAX_SIDE)),
    refused("a JPEG of 65000 x 65000", bad.jpeg_header(65000, 65000), 413, "65000 x 65000", str(MAX_SIDE)),
    refused("a WebP of 13000 x 13000", bad.webp_header(13000, 13000), 413, "13000 x 13000", "smaller version"),
    refused("a WebP of 8192 x 8191 in 34 bytes", bad.webp_of_one_colour(), 413, "8192 x 8191", "smaller version"),
    refused("a GIF of 65000 x 65000", bad.gif_header(65000, 65000), 413, "65000 x 65000", str(MAX_SIDE)),
    refused("a GIF's frame of 60000 x 60000", bad.gif_frame(60000, 60000), 413, "too large", "smaller version"),
    refused("a side of 16385", bad.png(MAX_SIDE + 1, 1), 413, f"{MAX_SIDE + 1} x 1 ", str(MAX_SIDE)),
    refused("a text of 100 MB in a PNG", lambda: bad.inflating(b"zTXt", b"Comment"), 400, "damaged PNG", "too large"),
    refused("a profile of 100 MB in a PNG", lambda: bad.inflating(b"iCCP", b"icc"), 400, "damaged PNG", "too large"),
    taken("100 MB of pixels too many in a PNG", bad.surplus_pixels, plain(PHOTO)),
    taken("a GIF of 50,000 frames", bad.many_frames, plain(PHOTO.quantize(64))),
    taken("two thousand million frames", bad.countless_frames, plain(PHOTO)),
)

DAMAGED = (
    refused("nothing", b"", 400, "empty", "0 bytes"),
    refused("noise", bytes(range(7, 256)) * 40, 415, "unsupported format", "first bytes"),
    refused("zeros, as many as are taken", lambda: bytes(MAX_BYTES), 415, "unsupported format", "first bytes"),
    halved("JPEG"),
    halved("JPEG", progressive=True),
    halved("PNG"),
    halved("WEBP"),
    halved("WEBP", lossless=True),
    halved("GIF"),
    refused("three bytes of a JPEG", b"\xff\xd8\xff", 400, "damaged JPEG"),
    refused("eight bytes of a PNG", b"\x89PNG\r\n\x1a\n", 400, "damaged PNG"),
    refused("six bytes of a GIF", b"GIF89a", 400, "damaged GIF"),
    refused("twelve bytes of a WebP", b"RIFF\x04\0\0\0WEBP", 400, "damaged WEBP"),
    refused("a PNG without an end", encode(PHOTO, "PNG")[:-40], 400, "damaged PNG"),
    refused("a PNG with a wrong checksum", bad.wrong_checksum(), 400, "damaged PNG"),
    refused("a PNG without pixels", bad.png(60, 44), 400, "damaged PNG"),
    refused("a PNG of no width", bad.png(0, 44), 400, "damaged PNG"),
    refused("a JPEG of no height", bad.jpeg_header(120, 0), 400, "damaged JPEG"),
)

FOREIGN = (
    *(refused(f"Pillow's {name}", data, 415, "unsupported", "send JPEG") for name, data in bad.FOREIGN.items()),
    refused("SVG", SVG, 415, "'SVG'"),
    refused("HTML", b"<!DOCTYPE html><html>" + SCRIPT, 415, "'HTML'"),
    refused("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", 415, "'HEIC'"),
    refused("a video", b"\0\0\0\x18ftypisom\0\0\0\0", 415, "'MP4 video'"),
    refused("an archive", ZIP, 415, "'ZIP'"),
    refused("a photo, compressed once more", gzip.compress(JPEG, mtime=0), 415, "'gzip'", "send JPEG"),
)

POLYGLOTS = (
    taken("a photo that is an archive too", bad.jpeg_and(ZIP), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("a photo that is a script too", bad.jpeg_and(SCRIPT), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("a PNG with a script in its comment", bad.with_chunk(b"tEXt", b"Comment\0" + SCRIPT), plain(PHOTO)),
    taken("a photo and 16 MB behind it", bad.padded, plain(bad.seen(bad.jpeg_and(b"")))),
    refused("a script that begins as a GIF", b"GIF89a=1;" + SCRIPT, 400, "damaged GIF"),
    refused("a document with a photo in it", b"%PDF-1.7\n" + JPEG, 415, "'PDF'"),
    refused("an archive with a photo in it", ZIP + JPEG, 415, "'ZIP'"),
)

UNUSUAL = (
    *map(oriented, range(1, 9)),
    taken("orientation 9, which there is not", encode_with_orientation(PHOTO, 9, "PNG"), plain(PHOTO)),
    taken("damaged EXIF", encode(PHOTO, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), plain(PHOTO)),
    taken("CMYK", encode(PHOTO.convert("CMYK"), quality=95), plain(PHOTO), 0.999),
    taken("grey", encode(PHOTO.convert("L"), "PNG"), plain(PHOTO.convert("L"))),
    taken("black and white", encode(PHOTO.convert("1"), "PNG"), plain(PHOTO.convert("1"))),
    taken("grey of 16 bits", bad.sixteen_bit_grey(), plain(PHOTO.convert("L"))),
    taken("colours of 16 bits", bad.sixteen_bit_colour(), plain(PHOTO)),
    taken("a palette", encode(PHOTO.quantize(64), "PNG"), plain(PHOTO.quantize(64))),
    taken(
        "a palette with a transparent colour",
        bad.transparent_palette(),
        on_white(bad.seen(bad.transparent_palette(), "RGBA")),
    ),
    taken("alpha", encode(bad.CLEAR, "PNG"), on_white(bad.CLEAR)),
    taken("alpha in a WebP", encode(bad.CLEAR, "WEBP", lossless=True, exact=True), on_white(bad.CLEAR)),
    taken("grey with alpha", encode(bad.CLEAR.convert("LA"), "PNG"), on_white(bad.CLEAR.convert("LA"))),
    taken("alpha that hides nothing", encode(PHOTO.convert("RGBA"), "PNG"), plain(PHOTO)),
    taken("an animated GIF", bad.animated("GIF"), plain(bad.seen(bad.animated("GIF")))),
    taken("an animated WebP", bad.animated("WEBP", lossless=True), plain(PHOTO)),
    taken("an animated PNG", bad.animated("PNG"), plain(PHOTO)),
    taken("several pictures in a JPEG", bad.animated("MPO", quality=95), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("a progressive JPEG", encode(PHOTO, quality=95, progressive=True), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("one pixel", encode(Image.new("RGB", (1, 1), "teal"), "PNG"), plain(Image.new("RGB", (8, 8), "teal"))),
    taken(
        "a line of 16384 pixels",
        encode(Image.new("RGB", (MAX_SIDE, 1), "teal")),
        plain(Image.new("RGB", (8, 8), "teal")),
        0.999,
    ),
)

PICTURES = (*BOMBS, *DAMAGED, *FOREIGN, *POLYGLOTS, *UNUSUAL)
TABLE = (*PICTURES, *HTTP, *JSON)
