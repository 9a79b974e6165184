"""The Locust file by itself. Always in processes of its own: gevent rewrites the standard library."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.pictures import encode, scene
from tests.stand_in import stand_in

ROOT = Path(__file__).parents[1]
LOCUSTFILE = ROOT / "load_tests/locustfile.py"
JPEG, PNG = encode(scene(40, 30)), encode(scene(30, 40, seed=1), "PNG")


def drive(url: str, folder: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """What a run of a second writes."""
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", "--host", url]
    options = ["--users", "2", "--spawn-rate", "2", "--run-time", "1s", "--exit-code-on-error", "0"]
    written = ["--latencies", str(folder / "latencies.json")]
    done = subprocess.run(
        [*command, *options, *written, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "latencies.json").read_text(encoding="utf-8"))
    assert f"sending {found['sent']}" in done.stdout
    return found


def in_a_fresh_process(code: str) -> Any:
    """The JSON that `code` prints, with the Locust file as `locustfile`."""
    statements = f"import json\nfrom load_tests import locustfile\n{code}"
    done = subprocess.run([sys.executable, "-c", statements], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images, one of them deep inside, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "deep/b.PNG").write_bytes(PNG)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_files_of_a_folder_are_posted_as_they_are_and_latencies_are_finer_than_milliseconds(
    photos: Path, tmp_path: Path
) -> None:
    with stand_in() as served:
        found = drive(served.url, tmp_path, "--warm-up", "0", IMAGES=str(photos))
    assert set(served.bodies) == {JPEG, PNG}
    assert found["sent"] == f"2 files of {photos.name}"
    assert found["errors"] == {} and 0 < len(found["latencies_ms"]) <= len(served.bodies)
    assert any(latency % 1 for latency in found["latencies_ms"])
    assert max(found["latencies_ms"]) <= found["seconds"] * 1e3


def test_a_warm_up_as_long_as_the_run_measures_nothing_but_its_errors(photos: Path, tmp_path: Path) -> None:
    with stand_in() as served:
        quiet = drive(served.url, tmp_path, "--warm-up", "60", "--images", str(photos))
    assert served.bodies and quiet == {"sent": quiet["sent"], "latencies_ms": [], "seconds": 0.0, "errors": {}}
    with stand_in(status=503) as served:
        broken = drive(served.url, tmp_path, "--warm-up", "60", "--images", str(photos))
    ((reason, count),) = broken["errors"].items()
    assert "503" in reason and 0 < count <= len(served.bodies)


def test_an_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    found = in_a_fresh_process(
        f"try: locustfile.load_photos(locustfile.Path({str(tmp_path)!r}))\n"
        "except SystemExit as refused: print(json.dumps(str(refused)))"
    )
    assert found.startswith(f"no image in {tmp_path}; name a folder with .gif, .jpeg")


def test_latencies_and_errors_are_kept_apart() -> None:
    found = in_a_fresh_process(
        "recorder = locustfile.Recorder(warm_up_s=-1)\n"
        "recorder.record(1.25, None)\n"
        "recorder.record(0.001, ValueError('refused'))\n"
        "recorder.record(7.5, None)\n"
        "print(json.dumps(recorder.to_json()))"
    )
    assert found["latencies_ms"] == [1.25, 7.5] and found["errors"] == {"refused": 1}


@pytest.mark.parametrize("real", [True, False])
def test_without_a_folder_stl10_is_sent_where_it_is_and_drawn_pictures_elsewhere(real: bool, tmp_path: Path) -> None:
    stl10 = "locustfile.STL10" if real else f"locustfile.Path({str(tmp_path)!r}) / 'not-there.zip'"
    found = in_a_fresh_process(
        "locustfile.MOST_IMAGES = 20\n"
        f"stl10 = {stl10}\n"
        "photos = locustfile.load_photos(None, stl10)\n"
        "data = [photo.hex() for photo in photos.data]\n"
        "print(json.dumps({'origin': photos.origin, 'there': stl10.exists(), 'data': data}))"
    )
    kind = "images of STL-10 train" if found["there"] else "drawn images"
    assert found["origin"] == f"20 {kind}, 96 × 96 JPEG q90"
    pictures = [Image.open(BytesIO(bytes.fromhex(photo))) for photo in found["data"]]
    assert {(picture.format, picture.size) for picture in pictures} == {("JPEG", (96, 96))}
    assert len(set(found["data"])) == 20
