"""Bytes to (size, size, 3) uint8: the only code in the project that decodes, orients or resizes an image.

Pillow does the work. This module decides what reaches it: the format is recognised by its first
bytes and the dimensions are read from the header before memory is taken for pixels. Whatever goes
wrong on the way is an ImageError with an HTTP status and a reason.
"""

from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from images.sniff import sniff
from images.spec import PreprocessSpec

MAX_BYTES = 16 * 2**20
MAX_SIDE = 16_384  # pixels; the longest side that WebP can have
MAX_PIXELS = 64 * 2**20  # a 64-megapixel camera's photo passes; 256 MiB once decoded as RGB
MAX_WEBP_PIXELS = 24 * 2**20  # 384 MiB: Pillow takes four times as much for a WebP, which may have 34 bytes

# The plugins themselves, not Image.open: it would register every format that Pillow knows, follow
# the other pictures of an MPO, and only warn of decompression bombs.
PLUGINS: dict[str | None, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
}

# EXIF orientation to what puts the picture upright (Exif 2.3, 4.6.4 A).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """An image that cannot be taken: 400 damaged, 413 too large, 415 not a format we decode."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def decode(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """The pixels of an encoded image as `spec` says: (size, size, 3) uint8, possibly read-only."""
    _check_bytes(data)
    name = sniff(data)
    if name not in PLUGINS:
        kind = f"image format '{name}'" if name else f"format, first bytes {data[:8].hex(' ')}"
        raise ImageError(415, f"unsupported {kind}; send JPEG, PNG, WebP or GIF")
    try:
        if name == "WEBP":
            _check_dimensions(*_webp_dimensions(data), MAX_WEBP_PIXELS)  # before its plugin takes memory for them
        image = PLUGINS[name](BytesIO(data))
        _check_dimensions(*image.size)
        extent = _scale_in_dct(image, spec.size) if isinstance(image, JpegImageFile) else image.size
        image.load()
        pixels = fit(_to_rgb(image), extent, spec)
        # After load(): a PNG may carry its EXIF behind the pixels. After the resize: it is cheaper
        # there, and a centred square stays one however it is turned.
        orientation = _orientation(image)
        return np.asarray(pixels.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(413, f"{name} image is too large: {error}; send a smaller version") from error
    except MemoryError as error:
        raise ImageError(413, f"{name} image does not fit into memory; send a smaller version") from error
    except Exception as error:  # Pillow raises a dozen kinds for damage, SyntaxError among them
        raise ImageError(
            400, f"damaged {name} image: {error or type(error).__name__}; send a whole one"
        ) from error


def resize(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """What `decode` does after decoding, for pixels (H, W, 3) uint8 that are there already.

    An array of size x size comes back as it is, without a copy.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            400, f"pixels are {pixels.dtype} of shape {pixels.shape}; give uint8 of shape (H, W, 3)"
        )
    height, width, _ = pixels.shape
    if height == width == spec.size:
        return pixels
    return np.asarray(fit(Image.fromarray(pixels), (width, height), spec))


def fit(image: Image.Image, extent: tuple[float, float], spec: PreprocessSpec) -> Image.Image:
    """The largest centred square of an RGB or L image, resized to size x size RGB.

    `extent` is the picture's width and height in pixels of `image`: its size, or a fraction of a
    pixel less after scaling in the DCT domain, where the last row and column are partly padding.
    """
    width, height = extent
    side = min(extent)
    left, top = (width - side) / 2, (height - side) / 2
    if image.size != (spec.size, spec.size):
        image = image.resize(
            (spec.size, spec.size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_bytes(data: bytes) -> None:
    if not data:
        raise ImageError(400, "the image is empty: 0 bytes; send JPEG, PNG, WebP or GIF")
    if len(data) > MAX_BYTES:
        raise ImageError(
            413, f"{len(data)} bytes are more than the {MAX_BYTES} allowed; send a smaller version"
        )


def _check_dimensions(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if max(width, height) > MAX_SIDE:
        limit = f"a side of at most {MAX_SIDE} pixels is taken"
    elif width * height > max_pixels:
        limit = f"at most {max_pixels} pixels are taken"
    else:
        return
    raise ImageError(
        413, f"an image of {width} x {height} pixels is too large: {limit}; send a smaller version"
    )


def _webp_dimensions(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the first chunk (RFC 9649)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ImageError(400, "damaged WEBP image: it ends within its header; send a whole one")
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _scale_in_dct(image: JpegImageFile, size: int) -> tuple[float, float]:
    """Have libjpeg decode at 1/2, 1/4 or 1/8 where the shorter side stays >= 2 x size; the extent then."""
    if min(image.size) < 4 * size:
        return image.size
    drafted = image.draft(None, (2 * size, 2 * size))
    if drafted is None:  # a file without an image in it, which load() refuses
        return image.size
    _, (_, _, width, height) = drafted
    return width, height


def _to_rgb(image: ImageFile) -> Image.Image:
    """Any mode that the four formats load as, to RGB or L without changing what it looks like."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image
    if image.mode == "I;16":
        return _from_sixteen_bit(image)
    if image.has_transparency_data:
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(colours, mask=colours)
        return flat
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_sixteen_bit(image: ImageFile) -> Image.Image:
    """Grey of 16 bits to the high byte, as Pillow does for colour; its own conversion clips to white."""
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[samples == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _orientation(image: ImageFile) -> int | None:
    """The EXIF orientation, 1 to 8; None where there is none. Damaged metadata is no damaged image."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return None
    try:
        return image.getexif().get(ExifTag.Orientation)
    except Exception:
        return None
