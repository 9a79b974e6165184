"""The picture of the page in the documentation: the encoder that ships, among pictures that are generated.

    make test-page          # writes var/page/page.webp; docs/page.webp is a copy of it
"""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.page.visitor import visit
from tests.pictures import encode, scene
from tests.server import running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.page

MODEL_STORE = Path(__file__).parents[2] / "model_store"
SCENES = [1, 3, 8, 10, 12, 14, 22, 23]  # seeds
EACH = 16
MOST_BYTES = 150_000


def views(seed: int, count: int) -> list[Image.Image]:
    """The same scene from `count` points of view, 240 pixels a side."""
    random = np.random.default_rng(seed)
    whole = scene(960, 720, seed)
    found = []
    for _ in range(count):
        side = int(random.uniform(0.7, 0.9) * 720)
        left, top = (int(random.uniform(0, room)) for room in (960 - side, 720 - side))
        view = whole.crop((left, top, left + side, top + side))
        found.append(view.resize((240, 240), Image.Resampling.LANCZOS))
    return found


def test_views_of_a_scene_are_found_by_another_view_of_it(
    chromium: "Browser", tmp_path: Path, shots: Path
) -> None:
    with running_server(MODEL_STORE, tmp_path / "server", ["--index", "gallery", "--thumbnails"]) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for name, seed in zip("ABCDEFGH", SCENES, strict=True):
                for number, view in enumerate(views(seed, EACH + 1)[:EACH]):
                    path = f"/index/scene-{name}/{number:02d}.jpg?label=scene%20{name}"
                    client.put(path, content=encode(view, quality=90)).raise_for_status()
        photo = tmp_path / "another view of scene F.jpg"
        photo.write_bytes(encode(views(SCENES[5], EACH + 1)[EACH], quality=90))
        with visit(chromium, server.url) as visitor:
            visitor.map_is_drawn()
            visitor.drop(photo)
            visitor.searched(photo.name)
            visitor.until("document.querySelectorAll('.neighbours img').length === 12")
            assert sum(id.startswith("scene-F/") for id in visitor.neighbours()) >= 11
            visitor.map_is_drawn()
            picture = Image.open(BytesIO(visitor.page.screenshot(full_page=True)))
            picture.convert("RGB").save(shots / "page.webp", quality=78, method=6)
            assert (shots / "page.webp").stat().st_size <= MOST_BYTES
