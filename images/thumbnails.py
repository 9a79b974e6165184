"""A small picture of an image, for those who want to see what was found."""

from io import BytesIO

import numpy as np
from PIL import Image

from images.decode import decode, resize
from images.spec import PreprocessSpec

THUMBNAIL = PreprocessSpec(size=128)
QUALITY = 80  # of WebP, 0 to 100: about 5 KB a photo
EFFORT = 2  # of WebP, 0 to 6: half the time of the default 4, for 3% more bytes


def thumbnail(data: bytes | np.ndarray) -> bytes:
    """WebP of 128 x 128 pixels, the largest centred square, upright. Raises ImageError.

    data: an encoded image, or pixels (H, W, 3) uint8.
    """
    pixels = decode(data, THUMBNAIL) if isinstance(data, bytes) else resize(data, THUMBNAIL)
    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, "WEBP", quality=QUALITY, method=EFFORT)
    return encoded.getvalue()
