"""Which model answers to which name and version."""

from dataclasses import replace
from pathlib import Path

import pytest

from encoder.session import Encoder
from handlers.models import Models, version_of
from handlers.service import RequestError, Service


@pytest.fixture(scope="module")
def services(seeded_store: Path) -> list[Service]:
    """Three models that differ in their digests alone."""
    encoder = Encoder.load(seeded_store)
    digests = [first + encoder.manifest.model_digest[1:] for first in "abc"]
    return [Service(replace(encoder, manifest=replace(encoder.manifest, model_digest=d))) for d in digests]


def test_before_any_model_is_there_it_says_503(services: list[Service]) -> None:
    with pytest.raises(RequestError, match="loading") as refused:
        Models("encoder").service()
    assert refused.value.status == 503


def test_the_default_answers_where_no_name_is_given_and_an_unknown_one_is_404(services: list[Service]) -> None:
    models = Models("encoder")
    models.put("encoder", services[0])
    models.put("other", services[1])
    assert models.service() is models.service("encoder") is services[0]
    assert models.service("other") is services[1]
    with pytest.raises(RequestError, match=r"'third'.*'encoder' and 'other'") as refused:
        models.service("third")
    assert refused.value.status == 404


def test_a_newer_version_takes_the_place_of_the_one_before_which_is_handed_back(services: list[Service]) -> None:
    models = Models("encoder")
    assert models.put("encoder", services[0]) == []
    assert models.put("encoder", services[1]) == [services[0]]
    assert models.service() is services[1]
    with pytest.raises(RequestError, match=f"no version '{version_of(services[0])}'") as refused:
        models.service("encoder", version_of(services[0]))
    assert refused.value.status == 404


def test_versions_that_are_kept_answer_to_those_who_name_them(services: list[Service]) -> None:
    models = Models("encoder")
    models.put("encoder", services[0])
    assert models.put("encoder", services[1], keep=True) == []
    assert models.service("encoder") is services[1]
    assert models.service("encoder", version_of(services[0])) is services[0]
    assert [(served.version, served.current) for served in models] == [
        (version_of(services[0]), False),
        (version_of(services[1]), True),
    ]
    assert models.put("encoder", services[2]) == services[:2]


def test_the_same_version_opened_again_takes_the_place_of_itself(services: list[Service]) -> None:
    models = Models("encoder")
    models.put("encoder", services[0])
    again = Service(services[0].encoder)
    assert models.put("encoder", again, keep=True) == [services[0]]
    assert models.service() is again


def test_a_model_is_found_by_name_by_version_and_by_its_id(services: list[Service]) -> None:
    models = Models("encoder")
    models.put("encoder", services[0])
    models.put("encoder", services[1], keep=True)
    old, new = (service.encoder.manifest.model_id for service in services[:2])
    assert models.find("encoder") is services[1]
    assert models.find(f"encoder@{version_of(services[0])}") is models.find(old) is services[0]
    assert models.find(new) is services[1]
    assert models.find("encoder@0123456789ab") is models.find("nothing") is models.find("") is None
    assert models.names == ("encoder", old, new)


def test_several_come_at_once_and_are_ready_from_then_on(services: list[Service]) -> None:
    models = Models("encoder")
    assert not models.ready
    again = Service(services[1].encoder)
    assert models.put_all([("encoder", services[0]), ("b", services[1]), ("b", again)], keep=True) == [services[1]]
    assert models.ready
    assert [(served.name, served.service) for served in models] == [("encoder", services[0]), ("b", again)]
    models.clear()
    assert not models.ready
