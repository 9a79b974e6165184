"""Decoding: every format comes out as it looks, and everything else as an ImageError with a status."""

import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from encoder.session import Encoder
from images.decode import MAX_BYTES, MAX_PIXELS, MAX_SIDE, MAX_WEBP_PIXELS, ImageError, decode, resize
from images.spec import PreprocessSpec
from tests.pictures import encode, encode_with_orientation, scene
from tests.tiny_encoder import write_tiny_encoder

SPEC = PreprocessSpec(size=96)
MODEL_STORE = Path(__file__).parent.parent / "model_store"


def refusal(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, SPEC)
    assert caught.value.reason and str(caught.value) == caught.value.reason
    return caught.value


def flat(colour: object, mode: str = "RGB", size: tuple[int, int] = (120, 100)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


# What good images become


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_image_of_the_right_size_keeps_its_pixels(format: str, options: dict[str, object]) -> None:
    picture = scene(96, 96)
    assert np.array_equal(decode(encode(picture, format, **options), SPEC), np.asarray(picture))


def test_a_jpeg_of_the_right_size_is_what_pillow_decodes() -> None:
    data = encode(scene(96, 96), quality=90)
    assert np.array_equal(decode(data, SPEC), np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("size", [(96, 96), (97, 96), (1, 1), (1, 500), (2000, 30), (383, 385), (1601, 1203)])
def test_any_size_becomes_size_by_size_rgb(format: str, size: tuple[int, int]) -> None:
    pixels = decode(encode(flat((200, 100, 50), size=size), format, quality=95), SPEC)
    assert pixels.shape == (96, 96, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_the_centre_square_is_kept() -> None:
    columns = np.zeros((96, 192, 3), np.uint8)
    columns[:, :48], columns[:, 48:144], columns[:, 144:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert (decode(encode(Image.fromarray(columns), "PNG"), SPEC) == (0, 255, 0)).all()


def test_shrinking_is_antialiased() -> None:
    checkers = np.indices((960, 960)).sum(0) % 2 * np.uint8(255)
    assert (
        np.abs(
            decode(encode(Image.fromarray(checkers.astype(np.uint8)), "PNG"), SPEC).astype(int) - 127
        ).max()
        <= 2
    )


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(format: str) -> None:
    frames = [flat((255, 0, 0)), flat((0, 0, 255))]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    assert np.abs(decode(data, SPEC).astype(int) - (255, 0, 0)).max() <= 3


def test_of_a_multi_picture_jpeg_the_first_picture_counts() -> None:
    data = encode(flat((255, 0, 0)), "MPO", save_all=True, append_images=[flat((0, 0, 255))])
    assert np.abs(decode(data, SPEC).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(96, 96), (300, 200), (1000, 800)])
def test_exif_orientation_is_applied(format: str, orientation: int, size: tuple[int, int]) -> None:
    picture = scene(*size)
    tagged = encode_with_orientation(picture, orientation, format, quality=95)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(tagged)))
    expected = resize(np.asarray(upright), SPEC).astype(int)
    difference = np.abs(decode(tagged, SPEC).astype(int) - expected)
    # Turning before or after the two passes of a resize rounds differently; libjpeg's scaling more so.
    assert difference.max() <= (8 if format == "JPEG" and size == (1000, 800) else 1)


def test_damaged_exif_is_ignored() -> None:
    picture = scene(96, 96)
    broken = encode(picture, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert np.array_equal(decode(broken, SPEC), np.asarray(picture))


def test_cmyk_jpegs_as_adobe_writes_them_keep_their_colours() -> None:
    data = encode(flat((0, 255, 255, 0), "CMYK"), quality=95)  # no cyan, full magenta and yellow: red
    assert b"Adobe" in data
    assert np.abs(decode(data, SPEC).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (flat((0, 0, 0, 0), "RGBA"), 255),
        (flat((0, 0, 0, 128), "RGBA"), 127),
        (flat((40, 40, 40, 255), "RGBA"), 40),
        (flat((0, 0), "LA"), 255),
        (flat((0, 128), "LA"), 127),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_shows_white(picture: Image.Image, expected: int, format: str) -> None:
    pixels = decode(encode(picture, format, lossless=True), SPEC)
    assert (pixels == expected).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
def test_a_transparent_colour_shows_white(mode: str) -> None:
    left, right = (0, 1) if mode in ("1", "P") else (0, 200)
    picture = Image.new(mode, (96, 96), (left,) * 3 if mode == "RGB" else left)
    if mode == "P":
        picture.putpalette([0, 0, 0, 200, 200, 200])
    picture.paste((right,) * 3 if mode == "RGB" else right, (48, 0, 96, 96))
    transparent = (0, 0, 0) if mode == "RGB" else 0
    pixels = decode(encode(picture, "PNG", transparency=transparent), SPEC)
    assert (pixels[:, :48] == 255).all()
    assert (pixels[:, 48:] == (255 if mode == "1" else 200)).all()


def test_palettes_are_looked_up_before_resizing() -> None:
    columns = np.zeros((192, 192, 3), np.uint8)
    columns[:, ::2] = (255, 0, 0)
    columns[:, 1::2] = (0, 0, 255)
    pixels = decode(encode(Image.fromarray(columns).convert("P"), "PNG"), SPEC).astype(int)
    assert np.abs(pixels[:, 1:-1] - (127, 0, 127)).max() <= 4 and pixels[:, :, 1].max() == 0


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.linspace(0, 65535, 96 * 96).astype(np.uint16).reshape(96, 96)
    pixels = decode(encode(Image.fromarray(levels), "PNG"), SPEC)
    assert np.array_equal(pixels, np.repeat((levels // 256).astype(np.uint8)[:, :, None], 3, axis=2))


def test_one_bit_images_shrink_to_grey() -> None:
    dots = np.indices((192, 192)).sum(0) % 2 == 0
    pixels = decode(encode(Image.fromarray(dots), "PNG"), SPEC).astype(int)
    assert np.abs(pixels - 127).max() <= 4


# The fast way and the full way


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The model that ships, where it is there already; otherwise one of random weights."""
    if (MODEL_STORE / "encoder.json").exists():
        return Encoder.load(MODEL_STORE)
    store = tmp_path_factory.mktemp("model_store")
    write_tiny_encoder(store, size=96)
    return Encoder.load(store)


@pytest.mark.parametrize("seed", range(4))
def test_a_big_jpeg_decoded_fast_embeds_like_one_decoded_in_full(encoder: Encoder, seed: int) -> None:
    spec = encoder.manifest.preprocess
    data = encode(scene(1999, 1501, seed), quality=92)
    fast = decode(data, spec)
    full = resize(np.asarray(Image.open(BytesIO(data))), spec)
    assert not np.array_equal(fast, full), "the picture is too small for the fast way to be taken"
    one, other = encoder.embed(np.stack([fast, full])).vectors
    assert one @ other >= 0.99


# Too large


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends after saying how large it is."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(13)


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encode(flat((1, 2, 3))))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    data = bytearray(encode(flat((1, 2, 3), size=(1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides


@pytest.mark.parametrize("header", [png_header, jpeg_header, gif_header, webp_header])
@pytest.mark.parametrize("size", [(65000, 65000), (13000, 13000), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_a_header_alone_is_enough_to_refuse_an_image_as_too_large(
    header: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    error = refusal(header(*size))
    assert error.status == 413
    assert f"{size[0]} x {size[1]}" in error.reason
    most = MAX_WEBP_PIXELS if header is webp_header else MAX_PIXELS
    assert str(MAX_SIDE if max(size) > MAX_SIDE else most) in error.reason


def test_a_bomb_of_169_megapixels_in_a_few_kilobytes_is_refused() -> None:
    bomb = encode(Image.new("1", (13000, 13000)), "PNG")
    assert len(bomb) < 30_000
    assert refusal(bomb).status == 413


def test_a_gif_whose_first_frame_is_larger_than_its_screen_is_refused() -> None:
    data = bytearray(encode(flat((1, 2, 3)), "GIF"))
    start = data.index(b",\0\0\0\0")
    data[start + 5 : start + 9] = struct.pack("<HH", 60000, 60000)
    assert refusal(bytes(data)).status == 413


def test_a_photo_of_50_megapixels_is_taken() -> None:
    pixels = decode(encode(flat(77, "L", (8160, 6120))), SPEC)
    assert (pixels == 77).all()


def test_a_file_over_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    data = encode(scene(96, 96), "PNG")
    assert decode(data + bytes(MAX_BYTES - len(data)), SPEC).shape == (96, 96, 3)
    error = refusal(data + bytes(MAX_BYTES + 1 - len(data)))
    assert error.status == 413 and str(MAX_BYTES + 1) in error.reason and str(MAX_BYTES) in error.reason


# Other formats


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encode(flat((1, 2, 3)), "TIFF"), "TIFF"),
        (encode(flat((1, 2, 3)), "BMP"), "BMP"),
        (encode(flat((1, 2, 3)), "EPS"), "EPS"),
        (encode(flat((1, 2, 3)), "PDF"), "PDF"),
        (encode(flat((1, 2, 3)), "ICO"), "ICO"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n<svg/>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b'{"image": "..."}', "JSON"),
    ],
)
def test_other_formats_are_named_and_the_way_out_with_them(data: bytes, name: str) -> None:
    error = refusal(data)
    assert error.status == 415
    assert error.reason == f"unsupported image format '{name}'; send JPEG, PNG, WebP or GIF"


def test_noise_is_no_image_format() -> None:
    error = refusal(random.Random(0).randbytes(5000))
    assert error.status == 415 and "first bytes" in error.reason


# Damage


def test_nothing_is_no_image() -> None:
    assert refusal(b"").status == 400


FILES = {
    "JPEG": encode(scene(200, 150)),
    "progressive JPEG": encode(scene(200, 150), progressive=True),
    "scaled JPEG": encode(scene(800, 600)),
    "PNG": encode(scene(200, 150), "PNG"),
    "palette PNG": encode(scene(200, 150).convert("P"), "PNG"),
    "WEBP": encode(scene(200, 150), "WEBP"),
    "lossless WEBP": encode(scene(200, 150).convert("RGBA"), "WEBP", lossless=True),
    "GIF": encode(scene(200, 150), "GIF"),
    "oriented JPEG": encode_with_orientation(scene(200, 150), 6),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_in_half_is_damaged(kind: str) -> None:
    data = FILES[kind]
    error = refusal(data[: len(data) // 2])
    assert error.status == 400
    assert error.reason.startswith("damaged ") and "send a whole one" in error.reason


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_anywhere_is_refused_or_decodes_to_the_whole_picture(kind: str) -> None:
    data = FILES[kind]
    whole = decode(data, SPEC)
    cuts = [*range(1, 40), *np.linspace(40, len(data) - 1, 40).astype(int), *range(len(data) - 20, len(data))]
    for cut in cuts:
        try:
            pixels = decode(data[:cut], SPEC)
        except ImageError as error:
            assert error.status in (400, 415)
        else:
            assert np.array_equal(pixels, whole), f"cut at {cut} of {len(data)}"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds in damaged metadata
def test_nothing_but_an_image_error_escapes_from_damaged_bytes(kind: str) -> None:
    dice = random.Random(kind)
    for _ in range(150):
        data = bytearray(FILES[kind])
        for _ in range(dice.choice((1, 3, 30))):
            data[dice.randrange(min(len(data), dice.choice((64, 1000, len(data)))))] = dice.randrange(256)
        try:
            pixels = decode(bytes(data), SPEC)
        except ImageError as error:
            assert error.status in (400, 413, 415)
        else:
            assert pixels.shape == (96, 96, 3) and pixels.dtype == np.uint8


# Threads and arrays


def test_many_threads_get_the_same_pixels_as_one() -> None:
    expected = {kind: decode(data, SPEC) for kind, data in FILES.items()}
    work = [*FILES] * 10
    with ThreadPoolExecutor(8) as pool:
        for kind, pixels in zip(work, pool.map(lambda kind: decode(FILES[kind], SPEC), work), strict=True):
            assert np.array_equal(pixels, expected[kind])


def test_pixels_are_resized_exactly_as_a_decoded_file_is() -> None:
    picture = scene(311, 207)
    assert np.array_equal(resize(np.asarray(picture), SPEC), decode(encode(picture, "PNG"), SPEC))


def test_pixels_of_the_right_size_come_back_without_a_copy() -> None:
    pixels = np.asarray(scene(96, 96))
    assert resize(pixels, SPEC) is pixels


@pytest.mark.parametrize("pixels", [np.zeros((96, 96), np.uint8), np.zeros((96, 96, 3), np.float32)])
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match="give uint8 of shape"):
        resize(pixels, SPEC)
