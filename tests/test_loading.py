"""What was opened for a model that cannot be served is closed again."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encoder.batching import Batching
from handlers import loading
from handlers.metrics import Metrics
from handlers.settings import Settings, Source
from index.errors import GalleryError
from index.gallery import Gallery
from index.thumbnails import Thumbnails
from tests.serving import front_with


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many galleries and thumbnails have been closed, in a folder of our own."""
    monkeypatch.chdir(tmp_path)
    counted: Counter[str] = Counter()

    def counting(kind: type, name: str) -> None:
        close: Callable[[Any], None] = kind.close  # type: ignore[attr-defined]

        def closing(self: Any) -> None:
            counted[name] += 1
            close(self)

        monkeypatch.setattr(kind, "close", closing)

    counting(Gallery, "gallery")
    counting(Thumbnails, "thumbnails")
    return counted


@pytest.fixture
def metrics() -> Metrics:
    return front_with(None, capacity=0).metrics


def never_alone() -> bool:
    return False


def fail(*given: Any, **more: Any) -> Any:
    raise GalleryError("something is amiss")


@pytest.mark.parametrize("successor", [False, True])
def test_where_no_image_can_be_added_gallery_and_thumbnails_are_closed(
    seeded_store: Path, tmp_path: Path, closed: Counter[str], metrics: Metrics, successor: bool
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"no picture")
    with pytest.raises(GalleryError, match=r"no image in .* could be added"):
        source = Source("encoder", seeded_store, "encoder")
        loading.load(Settings(images=photos), source, metrics, never_alone, successor)
    assert closed == {"gallery": 1, "thumbnails": 1}


@pytest.mark.parametrize("name", ["encoder", "other"])
@pytest.mark.parametrize(("owner", "method"), [(Gallery, "search"), (Batching, "__init__")])
def test_where_the_model_cannot_be_warmed_what_was_opened_is_closed(
    seeded_store: Path,
    closed: Counter[str],
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    name: str,
) -> None:
    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(GalleryError, match="amiss"):
        source = Source(name, seeded_store, "encoder")
        loading.load(Settings(max_batch=2, thumbnails=True), source, metrics, never_alone)
    assert closed == {"gallery": 1, "thumbnails": 1}


def test_a_model_that_is_loaded_has_its_seed_open(seeded_store: Path, closed: Counter[str], metrics: Metrics) -> None:
    for name, folder in (("encoder", "gallery"), ("other", "galleries")):
        service = loading.load(Settings(), Source(name, seeded_store, "encoder"), metrics, never_alone)
        assert service.index().count == 3 and (Path("var") / folder).is_dir()
        assert closed["gallery"] == 0
        service.close()
        closed.clear()
