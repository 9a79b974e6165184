"""What JSON bodies carry: the object itself within bounds, images as base64, and values as errors show them."""

from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import orjson

from handlers.service import Answer, Options, RequestError, Service, to_json
from handlers.together import Steps
from images.decode import ImageError

IMAGE_HOW_TO = "send an image as data:image/jpeg;base64,... or as bare base64, without line breaks"


def parse_object(body: bytes, max_commas: int, how_to: str) -> dict[str, Any]:
    """A body that is a JSON object.

    max_commas: parsed, `[],` takes twenty times its bytes, so what no honest body holds is refused before that.
    """
    if body.count(b",") > max_commas:
        raise RequestError(413, f"the JSON has more than {max_commas} commas; {how_to}")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"this is not JSON ({error}); {how_to}") from error
    if not isinstance(given, dict):
        raise RequestError(400, f"the JSON is {show(given)}, not an object; {how_to}")
    return given


def check_keys(given: dict[str, Any], known: Sequence[str]) -> None:
    """Raise `RequestError` naming a key that is not one of `known`."""
    if unknown := sorted(given.keys() - set(known)):
        raise RequestError(400, f"unknown key {show(unknown[0])}; there is {', '.join(known)}")


def image_of(text: str) -> bytes | ImageError:
    """The image in a data URI or in bare base64; what is wrong with it, where it is neither."""
    if text[:5].lower() == "data:":
        head, _, text = text[5:].partition(",")
        media_type, *parameters = head.lower().split(";")
        if not media_type.startswith("image/"):
            return ImageError(415, f"a data URI of type {show(media_type)}; {IMAGE_HOW_TO}")
        if "base64" not in parameters:
            return ImageError(400, f"a data URI without ;base64; {IMAGE_HOW_TO}")
    elif text[:8].lower().startswith(("http://", "https://")):
        return ImageError(400, f"a URL, and this server fetches none; {IMAGE_HOW_TO}")
    try:
        return b64decode(text, validate=True)
    except ValueError as error:  # its subclass binascii.Error, or a character that is not ASCII
        return ImageError(400, f"{show(text)} is not base64 ({error}); {IMAGE_HOW_TO}")


def embed_readable(
    service: Service,
    images: Sequence[bytes | ImageError],
    options: Options,
    timing_ms: dict[str, float] | None = None,
) -> Steps[list[Answer | ImageError]]:
    """The images that are there as one batch, and every answer or error in the place of its input."""
    readable = [image for image in images if isinstance(image, bytes)]
    answers = iter((yield from service.answering(readable, options, timing_ms)))
    return [image if isinstance(image, ImageError) else next(answers) for image in images]


def show(value: Any) -> str:
    """A value from outside, short; what is nested is only named, since repr() of deep nesting fails."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return to_json(value).decode()
