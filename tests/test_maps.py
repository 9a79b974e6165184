"""Pictures of an encoder: the map of the test split, and the sheet of nearest neighbours."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tests.tiny_encoder import write_tiny_encoder
from tests.tiny_stl10 import write_tiny_stl10
from training import maps
from training.labelled import Split, read_split
from training.maps import OTHER, SAME, Nearest, draw_lots, draw_map, draw_sheet, nearest, plane

NAMES = ("cat", "dog", "ship")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def two_heaps(each: int = 30) -> np.ndarray:
    """(2 · each, 16) unit vectors around two opposite directions."""
    noise = np.random.default_rng(0).normal(0, 0.1, (2 * each, 16))
    noise[:each, 0] += 1
    noise[each:, 0] -= 1
    return unit(noise)


def test_the_map_keeps_neighbours_together_and_repeats_itself() -> None:
    points = plane(two_heaps(), perplexity=10, seed=0)
    assert points.shape == (60, 2) and points.dtype == np.float32
    assert np.array_equal(points, plane(two_heaps(), perplexity=10, seed=0))
    centre = np.stack([points[:30].mean(axis=0), points[30:].mean(axis=0)])
    own, other = (np.linalg.norm(points[:30] - place, axis=1) for place in centre)
    assert (own < other).all()


def test_a_map_of_few_points_lowers_the_perplexity() -> None:
    assert np.isfinite(plane(two_heaps(5), perplexity=30, seed=0)).all()


def test_a_collapsed_encoder_has_no_map() -> None:
    with pytest.raises(SystemExit, match="all 40 embeddings are the same"):
        plane(np.repeat(unit(np.ones((1, 16))), 40, axis=0), perplexity=10, seed=0)


def test_class_names_stand_at_the_medians_of_their_points() -> None:
    points = np.array([[0, 0], [1, 0], [100, 0], [5, 5], [6, 7], [7, 6]], dtype=np.float32)
    axis = draw_map(points, np.array([0, 0, 0, 2, 2, 2]), NAMES, "map").axes[0]
    assert {text.get_text(): text.xy for text in axis.texts} == {"cat": (1, 0), "ship": (6, 6)}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["cat", "ship"]


def test_every_class_has_a_look_of_its_own() -> None:
    points, labels = np.random.default_rng(0).normal(size=(90, 2)), np.arange(90) % 30
    heaps = draw_map(points, labels, [str(label) for label in range(30)], "map").axes[0].collections
    looks = {(tuple(heap.get_facecolor()[0]), heap.get_paths()[0].vertices.tobytes()) for heap in heaps}
    assert len(heaps) == len(looks) == 30


def test_the_nearest_are_those_of_a_search_one_by_one_best_first() -> None:
    generator = np.random.default_rng(0)
    gallery, queries = unit(generator.normal(size=(40, 8))), unit(generator.normal(size=(5, 8)))
    found = nearest(gallery, queries, 6)
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        by_hand = sorted(((float(query @ vector), row) for row, vector in enumerate(gallery)), reverse=True)[:6]
        assert rows.tolist() == [row for _, row in by_hand]
        assert scores == pytest.approx([score for score, _ in by_hand], abs=1e-6)


def test_planted_duplicates_are_found_first_with_score_one() -> None:
    gallery = unit(np.random.default_rng(0).normal(size=(40, 8)))
    found = nearest(gallery, gallery[[7, 31]], 3)
    assert found.rows[:, 0].tolist() == [7, 31]
    assert found.scores[:, 0] == pytest.approx(1, abs=1e-6)


def test_a_gallery_smaller_than_the_sheet_is_shown_whole() -> None:
    gallery = unit(np.random.default_rng(0).normal(size=(3, 8)))
    assert nearest(gallery, gallery, 8).rows.shape == (3, 3)


def test_lots_are_drawn_among_all_and_classes_take_turns() -> None:
    labels = np.arange(300) // 100
    rows = draw_lots(labels, 7, seed=0)
    assert labels[rows].tolist() == sorted(labels[rows].tolist())
    assert sorted(np.bincount(labels[rows]).tolist()) == [2, 2, 3]
    assert len(set(rows.tolist())) == 7
    assert np.array_equal(rows, draw_lots(labels, 7, seed=0))
    assert not np.array_equal(rows, draw_lots(labels, 7, seed=1))
    assert max(draw_lots(labels, 30, seed=0) % 100) > 50  # not the first of each class


def plain(*colors: str) -> np.ndarray:
    """(N, 8, 8, 3) uint8: one image of each colour."""
    return np.stack([np.full((8, 8, 3), 255 * np.array(to_rgb(color))) for color in colors]).astype(np.uint8)


def color_at(figure: Figure, x: float, y: float) -> np.ndarray:
    """(3,) uint8 at a place of the sheet, in the units of its axis."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    column, row = figure.axes[0].transData.transform((x, y))
    return pixels[len(pixels) - 1 - int(row), int(column), :3]


def test_the_sheet_shows_each_query_and_beside_it_what_was_found_for_it() -> None:
    queries = Split(plain("red", "blue"), np.array([0, 2]))
    gallery = Split(plain("yellow", "blue", "red", "white"), np.array([1, 2, 0, 2]))
    found = Nearest(np.array([[2, 0], [1, 3]]), np.array([[1.0, 0.25], [0.98, 0.5]], dtype=np.float32))
    figure = draw_sheet(queries, gallery, found, NAMES, "sheet")
    shown = [[color_at(figure, x + 0.5, y + 0.5).tolist() for x in (0, 1.3, 2.4)] for y in (0, 1.3)]
    red, blue, yellow, white = [255, 0, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]
    assert shown == [[red, red, yellow], [blue, blue, white]]
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions == ["sheet", "cat", "1.00", "0.25 dog", "ship", "0.98", "0.50"]
    frames = [color_at(figure, x, y + 0.5) / 255 for y in (0, 1.3) for x in (1.3, 2.4)]
    for frame, color in zip(frames, (SAME, OTHER, SAME, SAME), strict=True):
        assert frame == pytest.approx(to_rgb(color), abs=0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stl10(tmp_path_factory.mktemp("stl10"), train=60, test=30)


def test_the_command_draws_both_pictures_of_the_test_split(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "map"
    flags = ["--weights", "random", "--stem", "standard", "--size", "32", "--queries", "4", "--neighbors", "3"]
    assert maps.main(["--data", str(data), "--out", str(out), *flags]) == 0
    assert capsys.readouterr().out.split() == [str(out / "tsne.png"), str(out / "neighbors.png")]
    for name in ("tsne.png", "neighbors.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100


def test_the_served_artifact_is_drawn_at_its_own_size(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_encoder(tmp_path / "store", size=24)
    shapes: list[tuple[int, ...]] = []

    def read(folder: Path, split: str, size: int) -> Split:
        read = read_split(folder, split, size)
        shapes.append(read.images.shape)
        return read

    monkeypatch.setattr(maps, "read_split", read)
    assert maps.main(["--data", str(data), "--out", str(tmp_path), "--onnx", str(tmp_path / "store")]) == 0
    assert sorted(shapes) == [(30, 24, 24, 3), (60, 24, 24, 3)]
    assert (tmp_path / "tsne.png").exists() and (tmp_path / "neighbors.png").exists()


def test_knobs_without_sense_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        maps.main(["--neighbors", "0"])
    assert "neighbors 0 is too little; give at least 1" in capsys.readouterr().err
