"""The two JPEGs that are sent: a small one as the encoder was trained on, and one as a camera makes it."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from images.decode import ImageError, resize
from images.sources import SourceError, open_source, pixels
from images.spec import PreprocessSpec
from load_tests.pictures import encode, scene

STL10 = Path(__file__).parents[2] / "shared/data/stl10-train.zip"
SIDE = 96  # pixels, as STL-10 has
QUALITY = 90
CAMERA_SIZE, CAMERA_QUALITY = (4000, 3000), 92


@dataclass(frozen=True)
class Photo:
    """An encoded image, and where it comes from."""

    data: bytes
    origin: str

    @property
    def description(self) -> str:
        return f"{self.origin}, {len(self.data)} bytes"


def small_photo(images: Path | None) -> Photo:
    """96 x 96: the first image of `images` that can be read, else of STL-10 where it is there, else a drawn one."""
    kind = f"{SIDE} × {SIDE} JPEG q{QUALITY}"
    if images is not None:
        return Photo(_first_image(images), f"{kind} of the first image in {images.name}")
    if STL10.exists():
        return Photo(_first_image(STL10), f"{kind} of STL-10 train's first image")
    return Photo(encode(scene(SIDE, SIDE), quality=QUALITY), f"{kind}, generated")


def camera_photo() -> Photo:
    """12 megapixels with detail at every scale."""
    width, height = CAMERA_SIZE
    return Photo(
        encode(scene(width, height), quality=CAMERA_QUALITY), f"{width} × {height} JPEG q{CAMERA_QUALITY}, generated"
    )


def pillow_full(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """Every pixel, then one resize, (size, size, 3) uint8: the yardstick of a large photo's embedding."""
    return resize(np.asarray(Image.open(BytesIO(data)).convert("RGB")), spec)


def _first_image(source: Path) -> bytes:
    spec = PreprocessSpec(size=SIDE)
    for item in open_source(source):
        try:
            return encode(Image.fromarray(pixels(item, spec)), quality=QUALITY)
        except ImageError:  # a folder may hold other files too
            continue
    raise SourceError(f"no image in {source} can be read; name a folder or archive with JPEG, PNG, WebP or GIF")
