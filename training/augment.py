"""Random views of a batch of images, every image with random numbers of its own, on the device the batch is on.

The spatial steps are linear maps of rows and columns, so a crop, an antialiased resize and flips become one pair
of small matrices an image, and a blur another pair: `rows @ image @ columns^T`. That is exact (the tests hold each
step against torchvision's operation on a single image) and costs two batched matrix products. A quarter turn is a
flip, which joins the matrices, and a transposition.

SimCLR, section 3 and appendix A (arXiv 2002.05709): crop and resize, flip, colour jitter, grayscale, blur; BYOL,
appendix B (arXiv 2006.07733): solarization. Pictures without an up, such as satellites take, can also be turned.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma as torchvision rounds it
CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """What a view may look like. Strengths as in torchvision's ColorJitter; probabilities in [0, 1]."""

    size: int = 96  # side of a view in pixels
    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area that a crop keeps
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop
    flip: float = 0.5  # probability of a mirrored view
    vertical_flip: float = 0.0  # probability of a view upside down
    rotate: float = 0.0  # probability of a turn, by 90, 180 or 270 degrees alike
    jitter: float = 0.8  # probability of colour jitter
    brightness: float = 0.4  # factor within 1 ± this
    contrast: float = 0.4  # factor within 1 ± this
    saturation: float = 0.4  # factor within 1 ± this
    hue: float = 0.1  # turn within ± this share of the colour circle
    grayscale: float = 0.2  # probability of a view without colour
    blur: float = 0.5  # probability of Gaussian blur
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, in pixels
    solarize: float = 0.0  # probability of a view whose bright half is inverted

    def __post_init__(self) -> None:
        for name in ("flip", "vertical_flip", "rotate", "jitter", "grayscale", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no probability; give 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} is no range of shares of the area; give two numbers from 0 to 1")
        if not 0 < self.ratio[0] <= 1 <= self.ratio[1]:  # where no crop fits, the whole square stands in
            raise ValueError(f"ratio {self.ratio} does not hold the square; give a number up to 1 and one from 1 on")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue {self.hue} is more than half the colour circle; give 0 to 0.5")


# What a view may change, from nothing to everything; the size is the recipe's. Cropping includes the flip, colour
# includes grayscale. `full` is SimCLR's as published (appendix A: jitter of strength 1, crops from 8% of the area).
_STILL = Augmentation(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)
_FULL = Augmentation(scale=(0.08, 1), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
POLICIES = {
    "crop": Augmentation(jitter=0, grayscale=0, blur=0),
    "color": replace(_STILL, jitter=0.8, grayscale=0.2),
    "crop+color": Augmentation(blur=0),
    "crop+color+blur": Augmentation(),
    "full": _FULL,
    "satellite": replace(_FULL, vertical_flip=0.5, rotate=0.75),  # no up: every orientation is as likely
}


class Randomness:
    """The random numbers of one training step, a function of (seed, step) alone: a resumed run draws the same."""

    def __init__(self, seed: int, step: int, device: torch.device) -> None:
        self.device = device
        self.here = torch.Generator(device).manual_seed(stream_seed(seed, step, 0))
        self.on_cpu = torch.Generator().manual_seed(stream_seed(seed, step, 1))

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.here, device=self.device) * (high - low) + low

    def happens(self, count: int, probability: float) -> Tensor:
        """(count,) bool."""
        return self.uniform((count,)) < probability

    def permutations(self, count: int, length: int) -> Tensor:
        """(count, length) int64 on the CPU: known there, so that picking rows by it never waits for a GPU."""
        return torch.rand((count, length), generator=self.on_cpu).argsort(dim=1)


def stream_seed(*path: int) -> int:
    """A generator's seed for a path such as (seed, step, stream), so hashed that neither neighbouring seeds nor
    different uses of one seed share random numbers."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


def view(canvas: Tensor, side: Tensor, aug: Augmentation, random: Randomness) -> Tensor:
    """One random view of each image.

    canvas: (N, 3, S, S) uint8, image n in its top left side[n] × side[n] pixels; side: (N,) integer.
    Returns (N, 3, size, size) float32 in [0, 1]. A step whose probability is 0 draws no random numbers, except the
    horizontal flip: a seed gives the views it gave before the other steps were there.
    """
    count = len(canvas)
    box = crop_boxes(side, aug.scale, aug.ratio, random)
    across = random.happens(count, aug.flip)
    down = random.happens(count, aug.vertical_flip) if aug.vertical_flip > 0 else None
    turns = quarter_turns(count, aug.rotate, random) if aug.rotate > 0 else None
    x = crop_resize(canvas.float() / 255, box, across, aug.size, down, turns)
    if aug.jitter > 0:
        x = color_jitter(x, aug, random)
    if aug.grayscale > 0:
        x = torch.where(random.happens(count, aug.grayscale).view(-1, 1, 1, 1), grayscale(x), x)
    if aug.blur > 0:
        sigma = random.uniform((count,), *aug.sigma)
        x = gaussian_blur(x, torch.where(random.happens(count, aug.blur), sigma, 0))
    if aug.solarize > 0:
        x = torch.where(random.happens(count, aug.solarize).view(-1, 1, 1, 1), solarize(x), x)
    return x


def crop_boxes(side: Tensor, scale: tuple[float, float], ratio: tuple[float, float], random: Randomness) -> Tensor:
    """(N, 4) float32 whole numbers: top, left, height, width, drawn as torchvision's RandomResizedCrop draws them:
    area and log aspect ratio uniform, the first of ten attempts that fits, else the whole image."""
    shape = (CROP_ATTEMPTS, len(side))
    edge = side.float()
    area = random.uniform(shape, *scale) * edge**2
    aspect = random.uniform(shape, math.log(ratio[0]), math.log(ratio[1])).exp()
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width > 0) & (width <= edge) & (height > 0) & (height <= edge)
    first = fits.int().argmax(dim=0, keepdim=True)  # argmax returns the first of equals
    any_fits = fits.any(dim=0)
    width = torch.where(any_fits, width.gather(0, first)[0], edge)
    height = torch.where(any_fits, height.gather(0, first)[0], edge)
    top = (random.uniform((len(side),)) * (edge - height + 1)).floor()
    left = (random.uniform((len(side),)) * (edge - width + 1)).floor()
    return torch.stack((top, left, height, width), dim=1)


def quarter_turns(count: int, probability: float, random: Randomness) -> Tensor:
    """(count,) int64: 0, or with `probability` 1, 2 or 3, each equally likely."""
    turns = 1 + (3 * random.uniform((count,))).long().clamp(max=2)
    return torch.where(random.happens(count, probability), turns, 0)


def crop_resize(
    x: Tensor, box: Tensor, across: Tensor, size: int, down: Tensor | None = None, turns: Tensor | None = None
) -> Tensor:
    """Crop each image to its box, resize to size × size (antialiased bilinear), mirror it where `across` says so,
    turn it upside down where `down` does, then by `turns` times 90 degrees counter-clockwise.

    x: (N, 3, S, S) float; box: (N, 4) top, left, height, width; across, down: (N,) bool; turns: (N,) integers from
    0 to 3. Returns (N, 3, size, size).
    """
    top, left, height, width = box.unbind(dim=1)
    rows = resize_matrices(top, height, size, x.shape[-2])
    columns = resize_matrices(left, width, size, x.shape[-1])
    if turns is not None:  # 1 is a mirror image transposed, 2 is both flips, 3 is an upside down transposed
        across = across ^ ((turns == 1) | (turns == 2))
        down = (turns >= 2) if down is None else down ^ (turns >= 2)
    columns = torch.where(across.view(-1, 1, 1), columns.flip(1), columns)
    if down is not None:
        rows = torch.where(down.view(-1, 1, 1), rows.flip(1), rows)
    resized = rows[:, None] @ x @ columns[:, None].transpose(-1, -2)
    if turns is None:
        return resized
    return torch.where((turns % 2 == 1).view(-1, 1, 1, 1), resized.transpose(-1, -2), resized)


def resize_matrices(start: Tensor, length: Tensor, size: int, canvas: int) -> Tensor:
    """(N, size, canvas): row i holds the weights of the source pixels in output pixel i. The triangle filter is
    as wide as the reduction (antialiasing) and cut at the crop's edges, as in torch's `interpolate`."""
    scale = (length / size).view(-1, 1, 1)
    output = torch.arange(size, device=start.device).view(1, -1, 1)
    source = torch.arange(canvas, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    distance = (source + 0.5 - (output + 0.5) * scale).abs() / scale.clamp(min=1)
    inside = (source >= 0) & (source < length.view(-1, 1, 1))
    weights = (1 - distance).clamp(min=0) * inside
    return weights / weights.sum(dim=-1, keepdim=True)


def color_jitter(x: Tensor, aug: Augmentation, random: Randomness) -> Tensor:
    """Brightness, contrast, saturation and hue, in a random order of its own for each image that is jittered.

    The first three are all `f·x + (1 - f)·reference` (black, the mean gray, each pixel's gray), so one expression
    does whichever of them an image's order asks for; only hue has to pick its images.
    """
    count = len(x)
    jittered = random.happens(count, aug.jitter)
    strengths = (aug.brightness, aug.contrast, aug.saturation)
    factors = torch.stack([random.uniform((count,), max(0, 1 - s), 1 + s) for s in strengths], dim=1)
    factors = torch.where(jittered[:, None], factors, 1)
    shifts = torch.where(jittered, random.uniform((count,), -aug.hue, aug.hue), 0)
    order = random.permutations(count, 4)  # 0 brightness, 1 contrast, 2 saturation, 3 hue
    for operation in order.unbind(dim=1):
        x = blend(x, factors, operation.to(x.device, non_blocking=True))
        if aug.hue > 0:
            rows = (operation == 3).nonzero()[:, 0].to(x.device, non_blocking=True)
            x = x.index_copy(0, rows, adjust_hue(x[rows], shifts[rows]))
    return x


def blend(x: Tensor, factors: Tensor, operation: Tensor) -> Tensor:
    """Brightness (0), contrast (1) or saturation (2) of each image; an image with operation 3 is left alone.

    x: (N, 3, S, S) in [0, 1]; factors: (N, 3); operation: (N,) integer.
    """
    chosen = torch.where(operation < 3, factors.gather(1, operation.clamp(max=2)[:, None])[:, 0], 1)
    factor, kind = chosen.view(-1, 1, 1, 1), operation.view(-1, 1, 1, 1)
    gray = luma(x)
    reference = torch.where(kind == 2, gray, gray.mean(dim=(2, 3), keepdim=True) * (kind == 1))
    return (factor * x + (1 - factor) * reference).clamp(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn each image's hue by `shift` of a full circle. x: (N, 3, S, S) in [0, 1]; shift: (N,) in [-0.5, 0.5].

    In HSV, channel n of (5, 3, 1) is `v - v·s·max(0, min(k, 4 - k, 1))` with `k = (n + 6·hue) mod 6`.
    """
    red, green, blue = x.unbind(dim=1)
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sextant + 6 * shift.view(-1, 1, 1)
    n = torch.arange(5, 0, -2, device=x.device)  # made on the device: a copied constant would wait for it
    k = (n.view(1, 3, 1, 1) + turned[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def luma(x: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 1, S, S)."""
    return GRAY[0] * x[:, 0:1] + GRAY[1] * x[:, 1:2] + GRAY[2] * x[:, 2:3]


def grayscale(x: Tensor) -> Tensor:
    return luma(x).expand_as(x)


def solarize(x: Tensor) -> Tensor:
    """Invert every value from one half up (BYOL, appendix B). x: (N, 3, S, S) in [0, 1]."""
    return torch.where(x < 0.5, x, 1 - x)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma (0: not at all). x: (N, 3, S, S); sigma: (N,) in pixels.

    The kernel spans about a tenth of the side (appendix A) and mirrors at the edges, as torchvision's does.
    """
    size = x.shape[-1]
    radius = blur_radius(size)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    matrix = torch.einsum("nt,tij->nij", kernel, reflected_taps(size, radius, x.device))[:, None]
    return matrix @ x @ matrix.transpose(-1, -2)


def blur_radius(size: int) -> int:
    return max(1, size // 20)


@cache
def reflected_taps(size: int, radius: int, device: torch.device) -> Tensor:
    """(2·radius + 1, size, size): tap t of output pixel i is a one at the pixel that i + t - radius mirrors to."""
    taps = torch.zeros(2 * radius + 1, size, size)
    for tap in range(2 * radius + 1):
        for i in range(size):
            source = abs(i + tap - radius)
            taps[tap, i, source if source < size else 2 * (size - 1) - source] = 1
    return taps.to(device)
