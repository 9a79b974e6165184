"""PreprocessSpec: what is written comes back, and nothing else is accepted."""

import json
from dataclasses import FrozenInstanceError

import pytest

from images.spec import PreprocessSpec


def test_the_default_is_96_pixels_in_rgb() -> None:
    assert PreprocessSpec().size == 96
    assert PreprocessSpec().color == "RGB"


def test_a_spec_survives_json() -> None:
    spec = PreprocessSpec(size=64)
    assert PreprocessSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PreprocessSpec().size = 64  # type: ignore[misc]


@pytest.mark.parametrize("size", [0, -96, 1025, 96.0, "96", True, None])
def test_a_size_that_is_no_sensible_whole_number_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=f"preprocess size {size!r} is not a whole number from 1 to 1024"):
        PreprocessSpec(size=size)  # type: ignore[arg-type]


def test_a_step_done_differently_is_refused_with_the_one_that_is_supported() -> None:
    with pytest.raises(ValueError, match="crop 'top left' is not supported, only 'center'"):
        PreprocessSpec.from_json(PreprocessSpec().to_json() | {"crop": "top left"})


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown \\['gamma'\\]"):
        PreprocessSpec.from_json(PreprocessSpec().to_json() | {"gamma": 2})


def test_a_missing_field_is_refused_by_name() -> None:
    values = PreprocessSpec().to_json()
    del values["background"]
    with pytest.raises(ValueError, match="missing \\['background'\\]"):
        PreprocessSpec.from_json(values)
