"""OpenAI's embeddings API for images: `POST /v1/embeddings` and `/v1/models`, for clients as they are.

    client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="unused")
    client.embeddings.create(model="encoder", input="data:image/jpeg;base64,...").data[0].embedding

Queue, workers, service and metrics are those of the hot path. The API has no error for one input of many: where
some images are bad, their entries have a null `embedding` beside an `error`; where all are, the request fails.
"""

from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from handlers.exchange import Front, Headers, Refusal, Route, Scope
from handlers.inline import IMAGE_HOW_TO, embed_readable, image_of, show
from handlers.service import Answer, Options, RequestError, Service, to_json
from images.decode import ImageError

EMBEDDINGS_PATH = "/v1/embeddings"
MODELS_PATH = "/v1/models"
MAX_INPUTS = 128  # as many as a form may hold
MAX_BODY_BYTES = 64 << 20  # two images of the hot path's 16 MiB as base64 (43 MiB), or 128 photos of 380 KB
# Parsed, `[],` takes twenty times its bytes. 128 data URIs have two commas each, so this lets every honest body in.
MAX_COMMAS = 4096
ARGUMENTS = ("input", "model", "encoding_format", "dimensions", "user")
EMBEDDING_ONLY = Options(fields=frozenset({"embedding"}))
# OpenAI's own names for what can be wrong with an image.
IMAGE_CODES = {400: "invalid_image", 413: "image_too_large", 415: "unsupported_image_media_type"}


class ArgumentError(RequestError):
    """A request that OpenAI's API would refuse as well, with the argument that is wrong."""

    def __init__(self, param: str | None, reason: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(status, reason)
        self.param = param
        self.code = code


class _Request(NamedTuple):
    inputs: list[str]
    as_base64: bool  # the embeddings, as little-endian float32


def route_for(path: str) -> Route | None:
    """The route of a path that is OpenAI's."""
    if path == EMBEDDINGS_PATH:
        return _EMBEDDINGS
    if path == MODELS_PATH or path.startswith(MODELS_PATH + "/"):
        return _MODELS
    return None


async def _list_models(front: Front, scope: Scope, headers: Headers, body: bytes) -> bytes:
    model_id = front.ready_service().encoder.manifest.model_id
    # The manifest has no date of the model; the API wants one.
    model = {"id": model_id, "object": "model", "created": 0, "owned_by": "akin"}
    name = scope["path"].removeprefix(MODELS_PATH)
    if not name:
        return to_json({"object": "list", "data": [model]})
    _check_model(name.removeprefix("/"), (front.name, model_id))
    return to_json(model)


async def _embed(front: Front, scope: Scope, headers: Headers, body: bytes) -> bytes:
    return await front.admission.submit(partial(_work, front.ready_service(), front.name, body))


def _work(service: Service, name: str, body: bytes) -> bytes:
    """In a worker thread: from the body to the JSON of the answer."""
    manifest = service.encoder.manifest
    request = _parse(body, (name, manifest.model_id), manifest.dimension)
    images = [image_of(text) for text in request.inputs]
    results = embed_readable(service, images, EMBEDDING_ONLY)
    if all(isinstance(result, ImageError) for result in results):
        raise _all_failed(results)
    return to_json(
        {
            "object": "list",
            "data": [_entry(index, result, request.as_base64) for index, result in enumerate(results)],
            "model": manifest.model_id,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )


def _parse(body: bytes, names: Sequence[str], dimension: int) -> _Request:
    """The arguments, each of them checked."""
    if body.count(b",") > MAX_COMMAS:
        raise ArgumentError(None, f"the body has more than {MAX_COMMAS} commas; {IMAGE_HOW_TO}, at most {MAX_INPUTS}")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ArgumentError(None, f"the body is not JSON ({error}); send an object with model and input") from error
    if not isinstance(given, dict):
        raise ArgumentError(None, f"the body is {show(given)}; send an object with model and input")
    if unknown := sorted(given.keys() - set(ARGUMENTS)):
        raise ArgumentError(unknown[0][:40], f"unknown argument {show(unknown[0])}; there is {', '.join(ARGUMENTS)}")
    _check_model(given.get("model"), names)
    encoding = given.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise ArgumentError("encoding_format", f"encoding_format is {show(encoding)}; send 'float' or 'base64'")
    dimensions = given.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions != dimension):
        reason = f"dimensions is {show(dimensions)}; this model has {dimension} and cannot be cut: leave it out"
        raise ArgumentError("dimensions", reason)
    return _Request(_inputs(given.get("input")), as_base64=encoding == "base64")


def _check_model(model: Any, names: Sequence[str]) -> None:
    known = " and ".join(map(repr, names))
    if not model:
        raise ArgumentError("model", f"no model is named; there is {known}")
    if model not in names:
        reason = f"the model {show(model)} does not exist; there is {known}"
        raise ArgumentError("model", reason, status=404, code="model_not_found")


def _inputs(given: Any) -> list[str]:
    inputs = given if isinstance(given, list) else [given]
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ArgumentError("input", f"input has {len(inputs)} images; send 1 to {MAX_INPUTS}")
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            where = f"input[{index}]" if isinstance(given, list) else "input"
            raise ArgumentError(where, f"{where} is {show(text)}; {IMAGE_HOW_TO}")
    return inputs


def _entry(index: int, result: Answer | ImageError, as_base64: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"object": "embedding", "index": index, "embedding": None}
    if isinstance(result, ImageError):
        return entry | {"error": _error(result, f"input[{index}]")}
    vector = result["embedding"]
    entry["embedding"] = b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector
    return entry


def _all_failed(errors: Sequence[Any]) -> ArgumentError:
    """The first image's error for all of them, with 400 where their statuses differ."""
    first: ImageError = errors[0]
    others = f" (none of the {len(errors)} images can be read; this is the first)" if len(errors) > 1 else ""
    status = first.status if all(error.status == first.status for error in errors) else 400
    return ArgumentError("input", first.reason + others, status, IMAGE_CODES[first.status])


def _error(refusal: Refusal, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    code = None
    if isinstance(refusal, ArgumentError):
        param, code = refusal.param, refusal.code
    elif isinstance(refusal, ImageError):
        code = IMAGE_CODES[refusal.status]
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {"message": refusal.reason, "type": kind, "param": param, "code": code}


def _error_json(refusal: Refusal) -> bytes:
    return to_json({"error": _error(refusal)})


_EMBEDDINGS = Route(methods=("POST",), max_bytes=MAX_BODY_BYTES, answer=_embed, error_json=_error_json)
_MODELS = Route(methods=("GET",), max_bytes=0, answer=_list_models, error_json=_error_json, counted=False)
