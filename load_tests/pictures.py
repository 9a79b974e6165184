"""Generated pictures for load and for tests, and how to encode them.

`scene` draws shapes with edges over gradients and fills every octave with texture, down to single
pixels, so that shortcuts in resizing show. Nothing here is a photo.
"""

from io import BytesIO

import numpy as np
from PIL import Image


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture with structure from the whole frame down to one pixel, the same for a seed."""
    random = np.random.default_rng(seed)
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    canvas = _gradient(random, across, down)
    for _ in range(12):
        left, top = random.uniform(0, 0.8, 2)
        right, bottom = np.add((left, top), random.uniform(0.1, 0.6, 2))
        columns = slice(int(left * width), int(right * width) + 1)
        rows = slice(int(top * height), int(bottom * height) + 1)
        x, y = across[:, columns], down[rows]
        fill = 0.7 * _gradient(random, x, y) + 0.3 * _stripes(random, x, y)
        if random.integers(2):  # an ellipse rather than a box
            outside = (2 * (x - left) / (right - left) - 1) ** 2 + (2 * (y - top) / (bottom - top) - 1) ** 2 > 1
            fill[outside] = canvas[rows, columns][outside]
        canvas[rows, columns] = fill
    canvas += _octaves(random, width, height)[:, :, None]
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """The file that `image.save` would write: encode(picture, "PNG"), encode(picture, quality=90)."""
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _gradient(random: np.random.Generator, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 from one random colour to others along both sides."""
    start, right, below = random.uniform(0, 255, (3, 3)).astype(np.float32)
    blend = start + across[:, :, None] * (right - start) + down[:, :, None] * (below - start)
    return np.clip(blend, 0, 255)


def _stripes(random: np.random.Generator, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(H, W, 1) float32, 0 or 255: sharp stripes of random direction and period."""
    angle, count = random.uniform(0, np.pi), random.uniform(4, 40)
    wave = np.sin(2 * np.pi * count * (np.cos(angle) * across + np.sin(angle) * down))
    return np.where(wave > 0, np.float32(255), np.float32(0))[:, :, None]


def _octaves(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(H, W) float32 noise with about the same strength at every scale, 1 pixel to the frame."""
    total = np.zeros((height, width), np.float32)
    cells = 1
    while cells < max(width, height):
        shape = (max(1, min(cells * height // width, height)), min(cells, width))
        noise = random.normal(0, 12, shape).astype(np.float32)
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
        cells *= 2
    return total + random.normal(0, 12, (height, width)).astype(np.float32)
