"""Images of any source, without labels, to set int8 ranges and to hold a smaller artifact against fp32."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.foreign_error import ForeignError
from images.decode import ImageError
from images.sources import decoded, open_source
from images.spec import PreprocessSpec

FEWEST = 100


class Unlabelled(NamedTuple):
    """Images as the encoder sees them, (N, size, size, 3) uint8, no one in both."""

    calibration: np.ndarray
    held_out: np.ndarray


def read_unlabelled(path: Path, spec: PreprocessSpec, calibration: int, held_out: int) -> Unlabelled:
    """Drawn with seed 0 from a folder, archive or any other of images.sources. Where it has fewer than both numbers
    ask for, at most half of them calibrate. What cannot be decoded is told and left out."""
    source = open_source(path)
    count = source.count if source.count is not None else sum(1 for _ in source)
    drawn = np.random.default_rng(0).permutation(count)[: calibration + held_out]
    wanted = set(drawn.tolist())
    chosen = (item for row, item in enumerate(source) if row in wanted)
    images = [image.pixels for image in decoded(chosen, spec, on_error=left_out)]
    if len(images) < (fewest := min(FEWEST, calibration + held_out)):
        raise ForeignError(
            f"{path} gives {len(images)} images that can be read, at least {fewest} are needed to set int8 ranges "
            "and to measure on others; name a source with more, like those that the encoder will be asked about"
        )
    shuffled = np.stack(images)[np.random.default_rng(1).permutation(len(images))]
    first = min(calibration, len(images) // 2)
    return Unlabelled(shuffled[:first], shuffled[first:])


def left_out(name: str, error: ImageError) -> None:
    print(f"{name} is left out: {error}", flush=True)
