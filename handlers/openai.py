"""OpenAI's embeddings API for images: `POST /v1/embeddings` and `/v1/models`, for clients as they are.

    client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="unused")
    client.embeddings.create(model="encoder", input="data:image/jpeg;base64,...").data[0].embedding

Queue, workers, service and metrics are those of the hot path. The API has no error for one input of many: where
some images are bad, their entries have a null `embedding` beside an `error`; where all are, the request fails.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from handlers.exchange import Front, Request, Route
from handlers.inline import IMAGE_HOW_TO, embed_readable, image_of, show
from handlers.models import Models
from handlers.refusals import Refusal
from handlers.service import Answer, Options, RequestError, Service, in_base64, to_json
from handlers.together import Steps
from images.decode import ImageError

EMBEDDINGS_PATH = "/v1/embeddings"
MODELS_PATH = "/v1/models"
MAX_INPUTS = 128  # as many as a form may hold
MAX_BODY_BYTES = 64 << 20  # two images of the hot path's 16 MiB as base64 (43 MiB), or 128 photos of 380 KB
# Parsed, `[],` takes twenty times its bytes. 128 data URIs have two commas each, so this lets every honest body in.
MAX_COMMAS = 4096
ARGUMENTS = ("input", "model", "encoding_format", "dimensions", "user")
# OpenAI's own names for what can be wrong with an image.
IMAGE_CODES = {400: "invalid_image", 413: "image_too_large", 415: "unsupported_image_media_type"}


class ArgumentError(RequestError):
    """A request that OpenAI's API would refuse as well, with the argument that is wrong."""

    def __init__(self, param: str | None, reason: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(status, reason)
        self.param = param
        self.code = code


class _Asked(NamedTuple):
    service: Service
    inputs: list[str]
    options: Options


def route_for(path: str) -> Route | None:
    """The route of a path that is OpenAI's."""
    if path == EMBEDDINGS_PATH:
        return _EMBEDDINGS
    if path == MODELS_PATH or path.startswith(MODELS_PATH + "/"):
        return _MODELS
    return None


async def _list_models(front: Front, request: Request) -> bytes:
    front.service()
    name = request.scope["path"].removeprefix(MODELS_PATH)
    if not name:
        return to_json({"object": "list", "data": [_described(served.service) for served in front.models]})
    return to_json(_described(_find(name.removeprefix("/"), front.models)))


def _described(service: Service) -> dict[str, Any]:
    # The manifest has no date of the model; the API wants one.
    return {"id": service.encoder.manifest.model_id, "object": "model", "created": 0, "owned_by": "akin"}


async def _embed(front: Front, request: Request) -> bytes:
    front.service()
    return await front.run_shared(request, partial(_work, front.models, request))


def _work(models: Models, request: Request) -> Steps[bytes]:
    """In a worker thread: from the body to the JSON of the answer."""
    asked = _parse(request.body, models)
    service = request.service = asked.service
    images = [image_of(text) for text in asked.inputs]
    results = yield from embed_readable(service, images, asked.options, request.timing_ms)
    if all(isinstance(result, ImageError) for result in results):
        raise _all_failed(results)
    return to_json(
        {
            "object": "list",
            "data": [_entry(index, result, asked.options) for index, result in enumerate(results)],
            "model": service.encoder.manifest.model_id,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )


def _parse(body: bytes, models: Models) -> _Asked:
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
    service = _find(given.get("model"), models)
    encoding = given.get("encoding_format")
    if encoding is None:
        encoding = "float"
    if encoding not in ("float", "base64"):
        raise ArgumentError("encoding_format", f"encoding_format is {show(encoding)}; send 'float' or 'base64'")
    dimension, dimensions = service.encoder.manifest.dimension, given.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions != dimension):
        reason = f"dimensions is {show(dimensions)}; this model has {dimension} and cannot be cut: leave it out"
        raise ArgumentError("dimensions", reason)
    options = Options(fields=frozenset({"embedding"}), as_base64=encoding == "base64")
    return _Asked(service, _inputs(given.get("input")), options)


def _find(model: Any, models: Models) -> Service:
    known = " and ".join(map(repr, models.names))
    if not model:
        raise ArgumentError("model", f"no model is named; there is {known}")
    service = models.find(model) if isinstance(model, str) else None
    if service is None:
        reason = f"the model {show(model)} does not exist; there is {known}"
        raise ArgumentError("model", reason, status=404, code="model_not_found")
    return service


def _inputs(given: Any) -> list[str]:
    inputs = given if isinstance(given, list) else [given]
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ArgumentError("input", f"input has {len(inputs)} images; send 1 to {MAX_INPUTS}")
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            where = f"input[{index}]" if isinstance(given, list) else "input"
            raise ArgumentError(where, f"{where} is {show(text)}; {IMAGE_HOW_TO}")
    return inputs


def _entry(index: int, result: Answer | ImageError, options: Options) -> dict[str, Any]:
    entry: dict[str, Any] = {"object": "embedding", "index": index, "embedding": None}
    if isinstance(result, ImageError):
        return entry | {"error": _error(result, f"input[{index}]")}
    vector = result["embedding"]
    return entry | {"embedding": in_base64(vector) if options.as_base64 else vector}


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


_EMBEDDINGS = Route(("POST",), MAX_BODY_BYTES, _embed, _error_json, kind="embeddings")
_MODELS = Route(methods=("GET",), max_bytes=0, answer=_list_models, error_json=_error_json, counted=False)
