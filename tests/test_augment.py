"""Batched augmentation, held step by step against torchvision's operations on single images."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from tests.pictures import scene
from training import augment
from training.augment import Augmentation, Randomness

CPU = torch.device("cpu")
PLAIN = Augmentation(size=32, scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)


def pictures(count: int, size: int) -> Tensor:
    """(count, 3, size, size) uint8."""
    scenes = [np.array(scene(size, size, seed=seed)) for seed in range(count)]
    return torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).contiguous()


def floats(count: int, size: int) -> Tensor:
    return pictures(count, size).float() / 255


def sides(canvas: Tensor) -> Tensor:
    return torch.full((len(canvas),), canvas.shape[-1])


def randomness(step: int = 0, seed: int = 0) -> Randomness:
    return Randomness(seed, step, CPU)


def views(aug: Augmentation, canvas: Tensor, step: int = 0, seed: int = 0) -> Tensor:
    return augment.view(canvas, sides(canvas), aug, randomness(step, seed))


def distinct(batch: Tensor) -> int:
    return len({image.numpy().tobytes() for image in batch})


@pytest.mark.parametrize("size", [8, 31, 32, 48, 96])
def test_crop_and_resize_equal_torchvision_on_each_image(size: int) -> None:
    x = floats(6, 64)
    boxes = torch.tensor(
        [[0, 0, 64, 64], [3, 5, 40, 31], [10, 0, 17, 64], [63, 63, 1, 1], [20, 30, 5, 7], [1, 2, 32, 32]]
    )
    flips = torch.tensor([False, True, False, True, True, False])
    found = augment.crop_resize(x, boxes.float(), flips, size)
    for image, (top, left, height, width), flip, ours in zip(x, boxes.tolist(), flips, found, strict=True):
        expected = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_flips_and_quarter_turns_equal_torchvision_on_each_image() -> None:
    cases = list(itertools.product((False, True), (False, True), range(4)))
    x, box = floats(1, 40).repeat(len(cases), 1, 1, 1), torch.tensor([[3, 5, 30, 21]]).repeat(len(cases), 1)
    across, down, turns = (torch.tensor(column) for column in zip(*cases, strict=True))
    found = augment.crop_resize(x, box.float(), across, 24, down, turns)
    for image, ours, (mirrored, upside_down, turn) in zip(x, found, cases, strict=True):
        expected = tv.resized_crop(image, *box[0].tolist(), [24, 24], antialias=True)
        expected = tv.horizontal_flip(expected) if mirrored else expected
        expected = tv.vertical_flip(expected) if upside_down else expected
        torch.testing.assert_close(ours, tv.rotate(expected, 90 * turn), atol=2e-5, rtol=0)
    assert distinct(found) == 8  # the symmetries of the square


def test_turns_need_no_vertical_flip_and_a_vertical_flip_no_turns() -> None:
    x, box, never = floats(4, 16), torch.tensor([[0, 0, 16, 16]]).repeat(4, 1).float(), torch.zeros(4).bool()
    turned = augment.crop_resize(x, box, never, 16, turns=torch.arange(4))
    for image, ours, turn in zip(x, turned, range(4), strict=True):
        torch.testing.assert_close(ours, tv.rotate(image, 90 * turn), atol=1e-6, rtol=0)
    torch.testing.assert_close(augment.crop_resize(x, box, never, 16, ~never), x.flip(-2), atol=1e-6, rtol=0)


def test_all_three_turns_are_equally_likely() -> None:
    counts = augment.quarter_turns(6000, 0.75, randomness()).bincount(minlength=4)
    assert len(counts) == 4
    assert (counts - 1500).abs().max() < 5 * 34  # 34: standard deviation of a count


def test_a_seed_keeps_its_views_where_the_newer_steps_are_off() -> None:
    canvas, aug = pictures(5, 40), Augmentation(size=24)
    draws = randomness()  # in the order that the shipped encoder was trained with
    box = augment.crop_boxes(sides(canvas), aug.scale, aug.ratio, draws)
    x = augment.crop_resize(canvas.float() / 255, box, draws.happens(5, aug.flip), aug.size)
    x = augment.color_jitter(x, aug, draws)
    x = torch.where(draws.happens(5, aug.grayscale).view(-1, 1, 1, 1), augment.grayscale(x), x)
    sigma = draws.uniform((5,), *aug.sigma)
    x = augment.gaussian_blur(x, torch.where(draws.happens(5, aug.blur), sigma, 0))
    assert torch.equal(views(aug, canvas), x)


def test_a_whole_image_at_its_own_size_comes_back_unchanged() -> None:
    canvas = pictures(3, 32)
    torch.testing.assert_close(views(PLAIN, canvas), canvas.float() / 255, atol=1e-6, rtol=0)


def test_what_lies_beside_a_small_image_on_its_canvas_never_shows() -> None:
    canvas, side = torch.zeros((4, 3, 48, 48), dtype=torch.uint8), torch.tensor([20, 31, 40, 48])
    for image, edge, picture in zip(canvas, side, pictures(4, 48), strict=True):
        image[:, :edge, :edge] = picture[:, :edge, :edge]
    elsewhere = torch.ones_like(canvas, dtype=torch.bool)
    for mask, edge in zip(elsewhere, side, strict=True):
        mask[:, :edge, :edge] = False
    aug = Augmentation(size=24)
    black, white = (augment.view(c, side, aug, randomness()) for c in (canvas, canvas.masked_fill(elsewhere, 255)))
    torch.testing.assert_close(black, white, atol=0, rtol=0)


def test_a_small_image_on_a_large_canvas_is_viewed_as_on_its_own() -> None:
    picture, canvas = pictures(1, 40), torch.zeros((1, 3, 96, 96), dtype=torch.uint8)
    canvas[:, :, :40, :40] = picture
    aug = Augmentation(size=24)
    ours = augment.view(canvas, torch.tensor([40]), aug, randomness())
    torch.testing.assert_close(ours, views(aug, picture), atol=1e-6, rtol=0)


def test_colour_steps_equal_torchvision_on_each_image() -> None:
    x = floats(6, 24)
    factors = torch.tensor(
        [[0.6, 1.4, 0.0], [1.0, 1.0, 1.0], [1.4, 0.6, 2.0], [0.0, 0.3, 0.6], [1.9, 2.0, 1.4], [1, 0, 1]]
    )
    for operation, adjust in enumerate((tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)):
        found = augment.blend(x, factors, torch.full((6,), operation))
        expected = torch.stack([adjust(image, float(f)) for image, f in zip(x, factors[:, operation], strict=True)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_blend_leaves_the_images_whose_turn_is_hue() -> None:
    x = floats(2, 16)
    assert torch.equal(augment.blend(x, torch.full((2, 3), 0.5), torch.tensor([3, 3])), x)


def test_hue_equals_torchvision_also_for_gray_black_and_pure_colours() -> None:
    x = floats(5, 24)
    flat = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]
    x[0, :, 0, : len(flat)] = torch.tensor(flat).T
    shifts = torch.tensor([0.1, -0.1, 0.5, -0.5, 0.0])
    expected = torch.stack([tv.adjust_hue(image, float(shift)) for image, shift in zip(x, shifts, strict=True)])
    torch.testing.assert_close(augment.adjust_hue(x, shifts), expected, atol=1e-5, rtol=0)


def test_grayscale_equals_torchvision() -> None:
    x = floats(2, 24)
    torch.testing.assert_close(augment.grayscale(x), tv.rgb_to_grayscale(x, 3), atol=1e-6, rtol=0)


def test_solarization_equals_torchvision_also_at_one_half() -> None:
    x = floats(3, 24)
    x[0, :, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(augment.solarize(x), torch.stack([tv.solarize(i, 0.5) for i in x]), atol=0, rtol=0)
    assert augment.solarize(x)[0, 0, 0, :3].tolist() == [0.0, 0.5, 0.0]


@pytest.mark.parametrize("size", [16, 48, 96])
def test_blur_equals_torchvision_with_each_images_own_sigma(size: int) -> None:
    x, sigmas = floats(4, size), torch.tensor([0.1, 0.5, 1.3, 2.0])
    kernel = 2 * augment.blur_radius(size) + 1
    expected = torch.stack(
        [tv.gaussian_blur(i, [kernel, kernel], [float(s), float(s)]) for i, s in zip(x, sigmas, strict=True)]
    )
    torch.testing.assert_close(augment.gaussian_blur(x, sigmas), expected, atol=1e-5, rtol=0)


def test_sigma_zero_does_not_blur() -> None:
    x = floats(2, 32)
    torch.testing.assert_close(augment.gaussian_blur(x, torch.zeros(2)), x, atol=1e-6, rtol=0)


def test_the_blur_kernel_spans_about_a_tenth_of_the_side() -> None:
    assert [2 * augment.blur_radius(size) + 1 for size in (48, 64, 96, 224)] == [5, 7, 9, 23]


def test_colour_jitter_is_torchvisions_steps_in_each_images_own_order() -> None:
    count, aug = 16, Augmentation(jitter=0.7)
    x = floats(count, 16)
    draws = randomness()
    jittered = draws.happens(count, aug.jitter)
    factors = [draws.uniform((count,), 0.6, 1.4) for _ in range(3)]
    shifts = draws.uniform((count,), -0.1, 0.1)
    orders = draws.permutations(count, 4)
    found = augment.color_jitter(x, aug, randomness())
    assert 0 < jittered.sum() < count
    for n, image in enumerate(x):
        for operation in orders[n].tolist() if jittered[n] else []:
            adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[operation]
            image = adjust(image, float((*factors, shifts)[operation][n]))
        torch.testing.assert_close(found[n], image, atol=1e-4, rtol=0)


def test_the_order_of_colour_steps_differs_between_images_and_no_step_is_left_out() -> None:
    orders = randomness().permutations(2400, 4)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(2400, 4))
    seen, counts = torch.unique(orders, dim=0, return_counts=True)
    assert len(seen) == math.factorial(4)
    assert counts.min() > 60  # 100 each on average


def test_crop_boxes_are_distributed_as_torchvisions() -> None:
    count, edge, scale, ratio = 6000, 96, (0.2, 1.0), (3 / 4, 4 / 3)
    ours = augment.crop_boxes(torch.full((count,), edge), scale, ratio, randomness())
    image = torch.zeros(3, edge, edge)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
        ).float()
    points = torch.linspace(0.05, 0.95, 10)
    for measure, tolerance in (
        (lambda box: box[:, 2] * box[:, 3] / edge**2, 0.03),  # share of the area
        (lambda box: (box[:, 3] / box[:, 2]).log(), 0.03),  # log of the aspect ratio
        (lambda box: (box[:, 0] + box[:, 2] / 2) / edge, 0.02),  # centre, down
        (lambda box: (box[:, 1] + box[:, 3] / 2) / edge, 0.02),  # centre, across
    ):
        torch.testing.assert_close(
            measure(ours).quantile(points), measure(theirs).quantile(points), atol=tolerance, rtol=0
        )


@pytest.mark.parametrize("scale", [(0.01, 0.05), (0.2, 1.0), (1.0, 1.0)])
def test_crop_boxes_are_whole_pixels_inside_their_images(scale: tuple[float, float]) -> None:
    side = torch.randint(8, 97, (3000,), generator=torch.Generator().manual_seed(1))
    boxes = augment.crop_boxes(side, scale, (3 / 4, 4 / 3), randomness())
    top, left, height, width = boxes.unbind(dim=1)
    assert torch.equal(boxes, boxes.round())
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height <= side).all()
    assert (left + width <= side).all()


def test_where_no_crop_fits_the_whole_image_stands_in() -> None:
    tall = augment.crop_boxes(torch.tensor([50, 20]), (1.0, 1.0), (0.5, 0.51), randomness())
    assert tall.tolist() == [[0, 0, 50, 50], [0, 0, 20, 20]]


@pytest.mark.parametrize(
    "aug",
    [
        Augmentation(size=24, flip=0, jitter=0, grayscale=0, blur=0),
        Augmentation(size=24, scale=(1, 1), ratio=(1, 1), flip=0, jitter=1, grayscale=0, blur=0),
        Augmentation(size=24, scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=1),
        Augmentation(size=24),
    ],
    ids=["crop", "colour", "blur", "all"],
)
def test_equal_images_of_one_batch_come_out_all_different(aug: Augmentation) -> None:
    assert distinct(views(aug, pictures(1, 32).repeat(8, 1, 1, 1))) == 8


@pytest.mark.parametrize("change", [{name: 0.5} for name in ("flip", "vertical_flip", "grayscale", "solarize")])
def test_chances_are_taken_for_each_image_by_itself(change: dict[str, float]) -> None:
    aug = Augmentation(
        **({"size": 16, "scale": (1, 1), "ratio": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0} | change)
    )
    batch = views(aug, pictures(1, 16).repeat(400, 1, 1, 1))
    _, counts = torch.unique(batch.flatten(1), dim=0, return_counts=True)
    assert len(counts) == 2
    assert counts.min() > 150


def test_a_step_repeats_itself_and_another_step_or_seed_does_not() -> None:
    canvas, aug = pictures(4, 32), Augmentation(size=24)
    assert torch.equal(views(aug, canvas, step=7), views(aug, canvas, step=7))
    assert not torch.equal(views(aug, canvas, step=7), views(aug, canvas, step=8))
    assert not torch.equal(views(aug, canvas, step=7), views(aug, canvas, step=7, seed=1))


def test_the_tensors_of_a_device_and_of_the_cpu_share_no_random_numbers() -> None:
    draws = randomness()
    ours, cpus = draws.uniform((4000,)), torch.rand(4000, generator=draws.on_cpu)
    assert abs(np.corrcoef(ours, cpus)[0, 1]) < 0.05
    assert not set(ours.tolist()[:50]) & set(cpus.tolist()[:50])


def test_no_step_of_one_seed_repeats_a_step_of_another() -> None:
    seeds = {
        augment.stream_seed(seed, step, stream) for seed in range(4) for step in range(500) for stream in range(3)
    }
    assert len(seeds) == 4 * 500 * 3
    assert augment.stream_seed(0, 1_000_003, 0) != augment.stream_seed(1, 0, 0)


def test_probability_zero_does_nothing_and_one_always_does_it() -> None:
    canvas = pictures(64, 32)
    x = canvas.float() / 255
    torch.testing.assert_close(views(PLAIN, canvas), x, atol=1e-6, rtol=0)
    always = {"size": 32, "scale": (1, 1), "ratio": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
    torch.testing.assert_close(views(Augmentation(**always | {"flip": 1}), canvas), x.flip(-1), atol=1e-6, rtol=0)
    upside_down = views(Augmentation(**always | {"vertical_flip": 1}), canvas)
    torch.testing.assert_close(upside_down, x.flip(-2), atol=1e-6, rtol=0)
    inverted = views(Augmentation(**always | {"solarize": 1}), canvas)
    torch.testing.assert_close(inverted, tv.solarize(x, 0.5), atol=1e-6, rtol=0)
    gray = views(Augmentation(**always | {"grayscale": 1}), canvas)
    torch.testing.assert_close(gray, tv.rgb_to_grayscale(x, 3), atol=1e-5, rtol=0)
    for change in ({"jitter": 1}, {"blur": 1, "sigma": (1.0, 2.0)}, {"rotate": 1}):
        changed = (views(Augmentation(**always | change), canvas) - x).abs().amax(dim=(1, 2, 3))
        assert changed.min() > 1e-3


def test_a_view_stays_in_the_range_of_pixels() -> None:
    batch = views(
        Augmentation(size=24, jitter=1, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5), pictures(32, 32)
    )
    assert batch.shape == (32, 3, 24, 24)
    assert batch.dtype == torch.float32
    assert batch.min() >= -1e-5
    assert batch.max() <= 1 + 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        *({"flip": 1.5}, {"blur": -0.1}, {"vertical_flip": 2}, {"rotate": 90}, {"solarize": -1}),
        *({"scale": (0.5, 0.2)}, {"scale": (0, 1)}, {"ratio": (2, 3)}, {"hue": 0.7}),
    ],
)
def test_strengths_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
