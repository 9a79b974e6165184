"""The soak: what it sends, what it holds each answer to, and that it fails on growth and on wrong answers."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from load_tests import server as served
from load_tests import soak
from load_tests.crowd import Answer
from load_tests.fronts import Model
from load_tests.photos import Photo
from load_tests.soak import Kind, Soak, kinds
from tests.server import Server
from tests.serving import JPEG


@pytest.fixture(scope="module")
def sent() -> dict[str, Kind]:
    """What is sent, with a small photo in place of a camera's."""
    return kinds("encoder", JPEG)


def test_every_kind_of_request_gets_the_status_it_deserves(server: Server, sent: dict[str, Kind]) -> None:
    for name, kind in sent.items():
        one = Soak(server.port, {name: kind})
        one.send(len(kind.requests))
        assert one.answers == {name: len(kind.requests)}
        assert one.wrong == {}, name
    assert server.process.poll() is None


def test_a_wrong_status_is_counted_with_what_was_expected(server: Server, sent: dict[str, Kind]) -> None:
    one = Soak(server.port, {"image": Kind(413, 1, sent["image"].requests)})
    one.send(3)
    assert one.wrong == {"image: 200 in place of 413": 3}


def test_requests_are_drawn_by_their_weights_and_always_alike(sent: dict[str, Kind]) -> None:
    drawn = [Counter(request.kind for request in Soak(0, sent)._draw(10_000)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    total = sum(kind.weight for kind in sent.values())
    for name in ("image", "neighbours", "damaged image"):
        assert drawn[0][name] == pytest.approx(10_000 * sent[name].weight / total, rel=0.2)
    assert set(drawn[0]) == set(sent)


def run(store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, megabytes: float = 100) -> tuple[int, dict]:
    """A short soak's exit code, and what it wrote."""
    monkeypatch.setattr(soak, "camera_photo", lambda: Photo(JPEG, "a small stand-in"))
    monkeypatch.setattr(soak, "REST_SECONDS", 0.0)
    model = Model(store, "encoder", Path(sys.prefix))
    code = soak.run(requests=300, warm_up=200, megabytes=megabytes, model=model, out=folder / "soak.json")
    return code, json.loads((folder / "soak.json").read_text(encoding="utf-8"))


def test_a_short_soak_passes_and_says_what_it_saw(
    seeded_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, written = run(seeded_store, tmp_path, monkeypatch)
    assert code == 0 and written["wrong"] == {}
    assert sum(written["answers"].values()) == 500
    assert len(written["resident_mb"]) == 1 + soak.READINGS
    assert written["grown_mb"] == written["resident_mb"][-1] - written["resident_mb"][0]
    assert written.keys() >= {"commit", "cpu", "date", "versions"}
    assert [file.name for file in tmp_path.iterdir()] == ["soak.json"]


def test_growth_beyond_the_limit_fails(
    seeded_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = iter(100.0 + 1.5 * number for number in range(1 + soak.READINGS))
    monkeypatch.setattr(served.Server, "memory", lambda self: served.Memory(next(readings), 999.0))
    code, written = run(seeded_store, tmp_path, monkeypatch, megabytes=20)
    assert code == 1 and written["grown_mb"] == 30.0
    assert "grown by 30.0 MB (≤ 20): missed" in capsys.readouterr().out


def test_a_wrong_answer_fails(seeded_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Soak._hear

    def mishear(self: Soak, answer: Answer) -> float:
        return heard(self, answer._replace(status=500) if answer.request.kind == "empty" else answer)

    monkeypatch.setattr(Soak, "_hear", mishear)
    code, written = run(seeded_store, tmp_path, monkeypatch)
    assert code == 1 and set(written["wrong"]) == {"empty: 500 in place of 400"}
