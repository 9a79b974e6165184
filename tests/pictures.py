"""Generated pictures for tests: those that load tests send, and what only tests need."""

from PIL import Image

from load_tests.pictures import encode, scene

__all__ = ["encode", "encode_with_orientation", "scene"]


def encode_with_orientation(image: Image.Image, orientation: int, format: str = "JPEG", **options: object) -> bytes:
    """`image` as it is, tagged with an EXIF orientation from 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, format, exif=exif, **options)
