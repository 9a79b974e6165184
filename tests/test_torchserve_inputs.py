"""What TorchServe's Java server hands over, sorted into images and options, without a server."""

import pytest

from handlers.service import FIELDS, Options, RequestError
from handlers.torchserve.inputs import parse_inputs

FORM = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "600"}


def test_a_raw_body_is_one_image() -> None:
    inputs = parse_inputs({"body": bytearray(b"photo")}, {"content-type": "image/jpeg", "content-length": "5"})
    assert inputs.images == [b"photo"]
    assert inputs.options == Options()


@pytest.mark.parametrize("content_type", ["", "application/octet-stream", "image/png", "IMAGE/JPEG; q=1"])
def test_image_types_and_none_at_all_are_taken(content_type: str) -> None:
    assert parse_inputs({"body": b"photo"}, {"Content-Type": content_type}).images == [b"photo"]


def test_every_part_but_the_options_is_an_image_in_their_order() -> None:
    inputs = parse_inputs({"b": b"1", "k": b"7", "a": b"2", "fields": b"label", "c": b"3"}, FORM)
    assert inputs.images == [b"1", b"2", b"3"]
    assert inputs.options == Options(7, frozenset({"label"}))


def test_option_headers_are_found_in_any_spelling_and_parts_go_first() -> None:
    headers = {**FORM, "AKIN-K": "3", "Akin-Fields": "label"}
    assert parse_inputs({"a": b"1"}, headers).options == Options(3, frozenset({"label"}))
    assert parse_inputs({"a": b"1", "k": b"4"}, headers).options == Options(4, frozenset({"label"}))


def test_headers_of_parts_are_not_taken_for_those_of_the_request() -> None:
    mixed = {**FORM, "akin-k": {"content-type": "image/png"}, "content-type": {"content-type": "text/plain"}}
    assert parse_inputs({"akin-k": b"1", "content-type": b"2"}, mixed).images == [b"1", b"2"]


def test_k_asks_for_every_field() -> None:
    assert parse_inputs({"body": b"1"}, {"akin-k": "1"}).options == Options(1, frozenset(FIELDS))


@pytest.mark.parametrize(
    ("parameters", "headers", "status", "words"),
    [
        ({"body": b"1"}, {"content-type": "text/plain"}, 415, "'text/plain'"),
        ({"body": b"1"}, {"Content-Encoding": "gzip"}, 415, "'gzip'; send it as it is"),
        ({"a": b"b"}, {"content-type": "application/x-www-form-urlencoded"}, 415, "curl -T"),
        ({"k": b"1"}, FORM, 400, "no image"),
        ({str(number): b"1" for number in range(129)}, FORM, 413, "128 images"),
        ({"body": b"1"}, {"akin-k": "x"}, 400, "k is 'x'"),
        ({"a": b"1", "k": b"\xff"}, FORM, 400, "k is '\ufffd'"),
        ({"a": b"1", "fields": b"bogus"}, FORM, 400, "'bogus'"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    parameters: dict[str, bytes], headers: dict[str, str], status: int, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        parse_inputs(parameters, headers)
    assert refused.value.status == status


def test_a_form_that_weighs_more_than_its_parts_has_lost_some() -> None:
    parts = {"image": bytes(5000)}
    assert parse_inputs(parts, {**FORM, "Content-Length": "5400"}).images == [bytes(5000)]
    with pytest.raises(RequestError, match="image1, image2"):
        parse_inputs(parts, {**FORM, "Content-Length": "10600"})
