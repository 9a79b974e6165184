"""The comparison of decoders: each decodes the same picture, and what is absent is named."""

import sys
from collections.abc import Sequence
from io import BytesIO
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from images.decode import decode
from images.spec import PreprocessSpec
from load_tests import bench_decode
from load_tests.bench_decode import SERVED, compare, decoders, photos, pillow_full, pillow_grey, stages
from tests.tiny_encoder import write_tiny_encoder

SPEC = PreprocessSpec(size=64)
SIZE = (1400, 1200)  # large enough to be scaled by an eighth


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return photos(SIZE)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two pictures, in grey levels."""
    return float(np.abs(one.astype(float) - other).mean())


def test_every_decoder_that_is_there_gives_the_same_picture(files: dict[str, bytes]) -> None:
    found, _ = decoders(None)
    del found["Pillow, grey"]
    for kind, data in files.items():
        whole = pillow_full(data, SPEC)
        turned = np.ascontiguousarray(np.rot90(whole))
        for name, run in found.items():
            pixels = run(data, SPEC)
            assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
            assert distance(pixels, whole) < 3 < distance(turned, whole), (kind, name)


def test_what_is_served_is_what_the_server_decodes_with(files: dict[str, bytes]) -> None:
    assert decoders(None)[0][SERVED] is decode


def test_grey_has_no_colours(files: dict[str, bytes]) -> None:
    pixels = pillow_grey(files["progressive"], SPEC)
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()


def test_a_progressive_file_is_cut_before_its_first_details_and_others_are_not(files: dict[str, bytes]) -> None:
    cut = bench_decode._without_details(files["progressive"])
    assert len(cut) < len(files["progressive"]) / 5 and cut.endswith(b"\xff\xd9")
    assert Image.open(BytesIO(cut)).size == SIZE
    for kind in ("baseline 4:2:0", "baseline 4:4:4"):
        assert bench_decode._without_details(files[kind]) == files[kind]


def test_a_library_that_is_absent_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("simplejpeg", "turbojpeg", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)  # what import raises ImportError for
    found, absent = decoders(None)
    assert all(name.startswith("Pillow") for name in found)
    assert [line.partition(" ")[0] for line in absent] == ["simplejpeg", "turbojpeg", "cv2"]


def test_simplejpeg_is_asked_for_twice_the_encoders_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    library = ModuleType("simplejpeg")
    library.decode_jpeg = lambda data, **options: asked.append(options) or np.zeros((130, 150, 3), np.uint8)
    monkeypatch.setitem(sys.modules, "simplejpeg", library)
    found, _ = decoders(None)
    for name in ("simplejpeg", "simplejpeg, fastdct and fastupsample"):
        assert found[name](b"", SPEC).shape == (64, 64, 3)
    assert asked == [
        {"fastdct": quick, "fastupsample": quick, "min_height": 128, "min_width": 128} for quick in (False, True)
    ]


def test_every_round_takes_all_and_begins_with_another() -> None:
    order: list[str] = []
    spent = compare({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(each) for name, each in spent.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_stages_add_up_to_the_way_that_is_served(files: dict[str, bytes]) -> None:
    taken = {name: take() for name, take in stages(files["baseline 4:2:0"], SPEC).items()}
    assert "resize of 175 × 150 alone" in taken
    np.testing.assert_array_equal(taken["resize of 175 × 150 alone"], decode(files["baseline 4:2:0"], SPEC))


def test_a_run_prints_time_ratio_and_cosine_of_every_decoder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path_factory.mktemp("store")
    write_tiny_encoder(store)
    arguments: Sequence[str] = ("bench_decode", "--rounds", "1", "--model-store", str(store))
    monkeypatch.setattr(sys, "argv", list(arguments))
    assert bench_decode.main(SIZE) == 0
    printed = capsys.readouterr().out
    count = len(decoders(None)[0])
    assert printed.count(": to what is served ") == printed.count(": cosine to the full decode ") == 3 * count
    assert printed.count("stage: ") == 3 * 6
