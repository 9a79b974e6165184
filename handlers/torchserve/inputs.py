"""What one TorchServe request asks for, read from what its Java server hands to the handler.

Java has taken multipart forms apart already: `parameters` maps the name of each part, or "body", to its bytes.
The query string does not get here, so options come as parts `k` and `fields` or as headers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handlers.multipart import MAX_IMAGES, OPTION_NAMES
from handlers.refusals import check_encoding
from handlers.service import Options, RequestError

FORM = "multipart/form-data"
# What a part may weigh beside its name and content: boundary, headers, file name. Generous.
PART_OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Inputs:
    """The images of one request and what is asked about them."""

    images: list[bytes]
    options: Options


def parse_inputs(parameters: Mapping[str, bytes | bytearray], headers: Mapping[str, Any]) -> Inputs:
    """Check and sort what came; raise `RequestError` for what cannot be answered.

    `headers` are those of the request, in the client's spelling. TorchServe mixes in the headers of the parts,
    as dictionaries under the name of the part.
    """
    given = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    content_type = given.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    check_encoding(given.get("content-encoding", ""))
    _check_content_type(kind)
    images = [bytes(value) for name, value in parameters.items() if name not in OPTION_NAMES]
    if kind == FORM:
        _check_form(parameters, images, given.get("content-length", "0"))
    options = {name: given.get(f"akin-{name}") for name in OPTION_NAMES}
    options |= {name: parameters[name].decode("utf-8", "replace") for name in OPTION_NAMES if name in parameters}
    return Inputs(images, Options.parse(**options))


def _check_content_type(kind: str) -> None:
    if kind == "application/x-www-form-urlencoded":
        raise RequestError(
            415, "TorchServe takes curl's default content type for a form; send the file with curl -T photo.jpg"
        )
    if kind not in ("", FORM, "application/octet-stream") and not kind.startswith("image/"):
        raise RequestError(
            415,
            f"content type {kind[:40]!r} is not taken; send the image's bytes as image/* or"
            f" application/octet-stream, or several as {FORM}",
        )


def _check_form(parameters: Mapping[str, bytes | bytearray], images: list[bytes], content_length: str) -> None:
    if not images:
        raise RequestError(400, "the multipart body holds no image; with curl write -F image=@photo.jpg")
    if len(images) > MAX_IMAGES:
        raise RequestError(413, f"more than {MAX_IMAGES} images in one request; send them in several")
    # Of parts that share a name only the last arrives. Bytes that no part accounts for give them away; without
    # this the client would get fewer answers than it sent images, and no reason.
    arrived = sum(len(name) + len(value) for name, value in parameters.items())
    missing = int(content_length) - arrived - PART_OVERHEAD_BYTES * len(parameters)
    if missing > 0:
        raise RequestError(
            400, "TorchServe keeps one part of each name, and some are lost here; name them image1, image2, ..."
        )
