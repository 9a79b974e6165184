"""The same image has the same digest, another one another."""

from hashlib import blake2b

import numpy as np
import pytest

from index.contents import DIGEST_BYTES, content_digest


def pixels(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)


def test_bytes_have_their_own_blake2b() -> None:
    digest = content_digest(b"\xff\xd8 a JPEG")
    assert digest == blake2b(b"\xff\xd8 a JPEG", digest_size=16).digest()
    assert len(digest) == DIGEST_BYTES == 16
    # Of the empty string, as RFC 7693's reference gives it for 16 bytes.
    assert content_digest(b"").hex() == "cae66941d9efbd404e4d88758ea67670"


def test_pixels_have_the_digest_of_their_values_wherever_they_lie_in_memory() -> None:
    image = pixels(4, 6, 3)
    digest = content_digest(image)
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[::2, ::2] = image
    assert content_digest(wide[::2, ::2]) == content_digest(np.asfortranarray(image)) == digest
    assert len(digest) == 16


@pytest.mark.parametrize(
    "other", [pixels(6, 4, 3), pixels(4, 6, 3)[::-1], pixels(4, 6, 3)[:, ::-1], pixels(72, 1, 1)]
)
def test_other_pixels_or_another_shape_have_another(other: np.ndarray) -> None:
    assert content_digest(other) != content_digest(pixels(4, 6, 3))


def test_one_changed_value_changes_it() -> None:
    image = pixels(4, 6, 3)
    image[3, 5, 2] ^= 1
    assert content_digest(image) != content_digest(pixels(4, 6, 3))
    assert content_digest(b"a") != content_digest(b"b")


def test_pixels_are_not_taken_for_the_bytes_they_consist_of() -> None:
    image = pixels(4, 6, 3)
    assert content_digest(image) != content_digest(image.tobytes())
