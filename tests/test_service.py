"""One request's work: options, answers and their JSON, without HTTP."""

import gc
import json
import weakref
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from encoder.session import Embedded, Encoder
from handlers.service import FIELDS, Options, RequestError, Service, batch_json, error_json, to_json
from images.decode import ImageError, decode
from index.gallery import Gallery
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder

PHOTOS = [encode(scene(48, 40, seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    model_store = tmp_path_factory.mktemp("model_store")
    write_tiny_encoder(model_store)
    return Encoder.load(model_store)


@pytest.fixture
def gallery(encoder: Encoder, tmp_path: Path) -> Gallery:
    """The four photos, the first two of them cats."""
    gallery = Gallery.open(tmp_path, encoder.manifest.model_digest, encoder.manifest.dimension)
    vectors = np.concatenate([vector_of(encoder, photo) for photo in PHOTOS])
    metadata = [{"taken": 2020 + number} for number in range(4)]
    gallery.add(["a", "b", "c", "d"], vectors, ["cat", "cat", "dog", None], metadata)
    return gallery


def vector_of(encoder: Encoder, photo: bytes) -> np.ndarray:
    return encoder.embed(decode(photo, encoder.manifest.preprocess)[None]).vectors


class CountingEncoder:
    """An encoder that remembers how many images each call had."""

    def __init__(self, encoder: Encoder) -> None:
        self.manifest = encoder.manifest
        self._encoder = encoder
        self.batches: list[int] = []

    def coming(self) -> AbstractContextManager[None]:
        return self._encoder.coming()

    def embed(self, batch: np.ndarray, alone: bool = False) -> Embedded:
        self.batches.append(len(batch))
        return self._encoder.embed(batch)


def test_no_options_mean_everything_but_neighbors() -> None:
    assert Options.parse(None, None) == Options() == Options(0, frozenset(FIELDS) - {"neighbors"})


def test_asking_for_neighbors_adds_them_to_everything() -> None:
    assert Options.parse("5", None) == Options(5, frozenset(FIELDS))


def test_fields_select() -> None:
    assert Options.parse("0", "embedding, label").fields == {"embedding", "label"}


@pytest.mark.parametrize("k", ["0", "1", " 7 ", "1000"])
def test_whole_numbers_within_the_limit_are_taken_as_k(k: str) -> None:
    assert Options.parse(k, None).k == int(k)


@pytest.mark.parametrize("k", ["-1", "1.5", "1000000000", "1001", "x", "", "٣", "1e2", "9" * 5000])
def test_any_other_k_is_refused_with_value_limit_and_way_out(k: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Options.parse(k, None)
    assert refusal.value.status == 400
    assert f"k is '{k[:37]}" in refusal.value.reason
    assert "from 0 (no neighbours) to 1000" in refusal.value.reason
    assert len(refusal.value.reason) < 200


@pytest.mark.parametrize(("fields", "named"), [("label,bogus", "'bogus'"), ("", "''"), ("Label", "'Label'")])
def test_an_unknown_field_is_named_next_to_the_known_ones(fields: str, named: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Options.parse(None, fields)
    assert refusal.value.status == 400
    assert named in refusal.value.reason
    assert "embedding" in refusal.value.reason


def test_the_answer_is_what_encoder_and_manifest_say(encoder: Encoder) -> None:
    answer = Service(encoder).answer(PHOTOS[0], Options())
    vectors, logits = encoder.embed(decode(PHOTOS[0], encoder.manifest.preprocess)[None])
    assert answer["model"] == encoder.manifest.model_id
    assert np.array_equal(answer["embedding"], vectors[0])
    assert np.array_equal(answer["logits"], logits[0])
    assert answer["label"] == encoder.manifest.class_names[int(logits[0].argmax())]
    assert set(answer["timing_ms"]) == {"decode", "embed"}
    assert "neighbors" not in answer


def test_confidence_is_the_softmax_of_the_logits_at_the_label(encoder: Encoder) -> None:
    answer = Service(encoder).answer(PHOTOS[0], Options())
    exponentials = np.exp(answer["logits"].astype(np.float64))
    assert answer["confidence"] == pytest.approx(exponentials.max() / exponentials.sum(), rel=1e-6)


@pytest.mark.parametrize("field", FIELDS)
def test_one_field_alone_is_all_there_is(encoder: Encoder, gallery: Gallery, field: str) -> None:
    assert set(Service(encoder, gallery).answer(PHOTOS[0], Options.parse("1", field))) == {field}


def test_a_photo_of_the_gallery_finds_itself_first_with_score_one(encoder: Encoder, gallery: Gallery) -> None:
    answer = Service(encoder, gallery).answer(PHOTOS[1], Options.parse("3", None))
    scores = [neighbor["score"] for neighbor in answer["neighbors"]]
    assert answer["neighbors"][0] == {
        "id": "b",
        "score": pytest.approx(1, abs=1e-5),
        "label": "cat",
        "metadata": {"taken": 2021},
    }
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert set(answer["timing_ms"]) == {"decode", "embed", "search"}


def test_more_neighbors_than_rows_gives_every_row_once(encoder: Encoder, gallery: Gallery) -> None:
    answer = Service(encoder, gallery).answer(PHOTOS[0], Options.parse("1000", None))
    assert sorted(neighbor["id"] for neighbor in answer["neighbors"]) == ["a", "b", "c", "d"]


def test_no_search_is_done_for_neighbors_that_were_not_selected(encoder: Encoder, gallery: Gallery) -> None:
    answer = Service(encoder, gallery).answer(PHOTOS[0], Options.parse("5", "label,timing_ms"))
    assert "search" not in answer["timing_ms"]


def test_neighbors_without_a_gallery_are_refused_with_the_way_out(encoder: Encoder) -> None:
    with pytest.raises(RequestError, match="send k=0") as refusal:
        Service(encoder).answer(PHOTOS[0], Options.parse("5", None))
    assert refusal.value.status == 409


def test_an_unreadable_image_raises_what_decode_says(encoder: Encoder) -> None:
    with pytest.raises(ImageError) as error:
        Service(encoder).answer(b"%PDF-1.7", Options())
    assert error.value.status == 415


def test_in_a_batch_the_bad_image_fails_alone_and_the_others_share_one_call(
    encoder: Encoder, gallery: Gallery
) -> None:
    counting = CountingEncoder(encoder)
    service = Service(counting, gallery)
    batch = [PHOTOS[2], b"", PHOTOS[0], b"noise" * 20, PHOTOS[2][:300]]
    found = service.answer_many(batch, Options.parse("1", None))
    assert counting.batches == [2]
    assert [item.status if isinstance(item, ImageError) else 200 for item in found] == [
        200,
        400,
        200,
        415,
        400,
    ]
    assert [item["neighbors"][0]["id"] for item in found if not isinstance(item, ImageError)] == ["c", "a"]


def test_a_batch_of_nothing_but_bad_images_never_reaches_the_encoder(encoder: Encoder) -> None:
    counting = CountingEncoder(encoder)
    found = Service(counting).answer_many([b"", b"x"], Options())
    assert [item.status for item in found] == [400, 415]
    assert counting.batches == []


def test_alone_or_in_a_batch_an_image_gets_the_same_vector(encoder: Encoder) -> None:
    service = Service(encoder)
    together = service.answer_many(PHOTOS, Options())
    for photo, item in zip(PHOTOS, together, strict=True):
        alone = service.answer(photo, Options())
        np.testing.assert_allclose(item["embedding"], alone["embedding"], atol=1e-6)


def test_every_stage_is_observed_once_a_call_and_every_decode_by_itself(
    encoder: Encoder, gallery: Gallery
) -> None:
    seen: list[str] = []
    service = Service(encoder, gallery, lambda stage, seconds: seen.append(stage))
    service.answer_many(PHOTOS[:3], Options.parse("1", None))
    assert seen == ["decode"] * 3 + ["embed", "search"]


def test_json_carries_float32_exactly_and_in_few_digits() -> None:
    values = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    text = to_json({"embedding": values})
    assert np.array_equal(np.array(json.loads(text)["embedding"], np.float32), values)
    assert to_json({"x": np.array([0.1], np.float32)}) == b'{"x":[0.1]}'
    assert len(text) < 13 * 512


def test_batch_json_gives_each_image_its_status() -> None:
    answers = [{"label": "cat"}, ImageError(415, "unsupported")]
    assert json.loads(batch_json(answers, Options())) == [
        {"status": 200, "label": "cat"},
        {"status": 415, "error": "unsupported"},
    ]


def test_error_json_has_status_and_reason() -> None:
    assert json.loads(error_json(404, "nothing here")) == {"status": 404, "error": "nothing here"}


def test_a_bad_image_is_let_go_with_its_error_and_not_by_the_garbage_collector(encoder: Encoder) -> None:
    service = Service(encoder)
    gc.disable()
    try:
        try:
            service.answer(PHOTOS[0][:100], Options())
        except ImageError as error:
            raised = weakref.ref(error)
        assert raised() is None
        (returned,) = service.answer_many([PHOTOS[0][:100]], Options())
        assert isinstance(returned, ImageError) and returned.__traceback__ is returned.__cause__ is None
    finally:
        gc.enable()
