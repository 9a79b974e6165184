"""The Open Inference Protocol v2 over REST: `/v2/...`, with Triton's binary tensors beside those in JSON.

    curl --json '{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["<base64>"]}]}' \
        http://127.0.0.1:8080/v2/models/encoder/infer

A tensor with the parameter `binary_data_size` lies behind the JSON, whose length is in the header
Inference-Header-Content-Length; `binary_data` and `binary_data_output` ask for outputs in that form.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from handlers.exchange import Front, Reply, Request, Route
from handlers.inline import check_keys, image_of, parse_object, show
from handlers.oip import (
    ENCODED,
    MAX_NUMBERS,
    Asked,
    Images,
    Output,
    check_input,
    check_tensor_parameters,
    choose_outputs,
    described,
    infer,
    model_metadata,
    parse_parameters,
    pixels_of,
    raw_images,
    repository,
    server_metadata,
)
from handlers.openai import MAX_BODY_BYTES
from handlers.refusals import Refusal
from handlers.service import RequestError, Service, at_place, to_json
from handlers.together import Steps
from images.decode import ImageError

SERVER = "/v2"
LIVE, READY, INDEX = f"{SERVER}/health/live", f"{SERVER}/health/ready", f"{SERVER}/repository/index"
MODEL_PATH = re.compile(rf"{SERVER}/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<verb>/ready|/infer)?")
JSON_LENGTH = b"inference-header-content-length"
# Beside the pixels and the images; every number and every list has one.
MAX_COMMAS = MAX_NUMBERS + 4096
HOW_TO = "send an object with inputs, and large tensors as binary data behind it"


def route_for(path: str) -> Route | None:
    """The route of a path that is the protocol's."""
    if path in (SERVER, LIVE, READY):
        return _SERVER
    if path == INDEX:
        return _INDEX
    if (found := MODEL_PATH.fullmatch(path)) is None:
        return None
    return _INFER if found["verb"] == "/infer" else _MODEL


async def _server(front: Front, request: Request) -> bytes:
    path = request.scope["path"]
    if path == SERVER:
        return to_json(server_metadata())
    if path == READY:
        front.service()
        return to_json({"ready": True})
    front.check_live()
    return to_json({"live": True})


async def _index(front: Front, request: Request) -> bytes:
    return to_json(repository(front))


async def _model(front: Front, request: Request) -> bytes:
    name, version, verb = _named(request)
    if verb is None:
        return to_json(model_metadata(front.models, name, version))
    front.service(name, version)
    return to_json({"name": name, "ready": True})


async def _infer(front: Front, request: Request) -> bytes | Reply:
    name, version, _ = _named(request)
    service = front.service(name, version)
    return await front.run_shared(request, partial(_work, service, name, request), service)


def _named(request: Request) -> tuple[str, str | None, str | None]:
    """Name and version of the model that the path is about, and what is wanted of it."""
    found = MODEL_PATH.fullmatch(request.scope["path"])
    assert found is not None
    return found["name"], found["version"], found["verb"]


def _work(service: Service, name: str, request: Request) -> Steps[bytes | Reply]:
    """In a worker thread: from the body to the answer."""
    head, binary = _split(request)
    given = parse_object(head, MAX_COMMAS, HOW_TO)
    check_keys(given, ("id", "parameters", "inputs", "outputs"))
    id = given.get("id", "")
    if not isinstance(id, str):
        raise RequestError(400, f"id is {show(id)}; send a string")
    parameters = _object(given, "parameters", "the request")
    k = parse_parameters(parameters, ("binary_data_output",))
    requested = _objects(given, "outputs", 0)
    chosen = choose_outputs(service, [output.get("name") for output in requested], k)
    in_binary = {name: _flag(parameters, "binary_data_output", False) for name in chosen}
    for output in requested:
        check_keys(output, ("name", "parameters"))
        wanted = _object(output, "parameters", output["name"])
        check_tensor_parameters(output["name"], wanted)
        in_binary[output["name"]] = _flag(wanted, "binary_data", in_binary[output["name"]])
    inputs = _objects(given, "inputs", 1)
    outputs = yield from infer(service, Asked(_images(service, inputs, binary), chosen, k), request.timing_ms)
    return _answer(described(service, name, id), outputs, in_binary)


def _split(request: Request) -> tuple[bytes, memoryview]:
    """The JSON, and the binary data behind it."""
    body, given = request.body, request.headers.get(JSON_LENGTH)
    if given is None:
        return body, memoryview(b"")
    if not (given.isdigit() and len(given) <= 10 and int(given) <= len(body)):
        said = f"{JSON_LENGTH.decode()} is {show(given.decode('latin-1'))}"
        raise RequestError(400, f"{said}; send how many of the body's {len(body)} bytes are JSON")
    length = int(given)
    return body[:length], memoryview(body)[length:]


def _images(service: Service, inputs: Sequence[dict[str, Any]], binary: memoryview) -> Images:
    """The images of the one input there has to be."""
    if len(inputs) != 1:
        raise RequestError(400, f"{len(inputs)} inputs; send one, 'image'")
    (given,) = inputs
    check_keys(given, ("name", "shape", "datatype", "parameters", "data"))
    count = check_input(service, given.get("name"), given.get("datatype"), given.get("shape"))
    parameters = _object(given, "parameters", "image")
    check_tensor_parameters("image", parameters)
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in given):
        raise RequestError(400, "the input needs either data or the parameter binary_data_size; send one of them")
    if (size or 0) != len(binary):
        raise RequestError(400, f"binary_data_size is {show(size)}; {len(binary)} bytes come behind the JSON")
    if size is not None:
        return raw_images(service, given["datatype"], count, binary)
    if not isinstance(data := given["data"], list):
        raise RequestError(400, f"data is {show(data)}; send a list")
    return _encoded(data, count) if given["datatype"] == ENCODED else pixels_of(service, count, data)


def _encoded(data: list[Any], count: int) -> list[bytes]:
    """Image files in base64, (N,) or (N, 1)."""
    texts = [text for row in data for text in (row if isinstance(row, list) else (row,))]
    if len(texts) != count:
        raise RequestError(400, f"{len(texts)} images in data; the shape says {count}")
    images = []
    for number, text in enumerate(texts):
        image = image_of(text) if isinstance(text, str) else ImageError(400, f"{show(text)}; send base64 as a string")
        if isinstance(image, ImageError):
            raise at_place(image, number, count)
        images.append(image)
    return images


def _answer(head: dict[str, Any], outputs: Sequence[Output], in_binary: dict[str, bool]) -> bytes | Reply:
    tensors: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output in outputs:
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if in_binary[output.name]:
            behind.append(output.raw())
            tensor["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            tensor["data"] = output.values if isinstance(output.values, list) else output.values.ravel()
        tensors.append(tensor)
    json = to_json(head | {"outputs": tensors})
    if not behind:
        return json
    return Reply(b"".join([json, *behind]), b"application/octet-stream", ((JSON_LENGTH, b"%d" % len(json)),))


def _object(given: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """An object that may be left out."""
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise RequestError(400, f"{key} of {where} is {show(value)}; send an object")
    return value


def _objects(given: dict[str, Any], key: str, least: int) -> list[dict[str, Any]]:
    """A list of objects, at least so many."""
    value = given.get(key, [])
    if not isinstance(value, list) or len(value) < least or not all(isinstance(one, dict) for one in value):
        raise RequestError(400, f"{key} is {show(value)}; send a list of objects that have a name, {least} at least")
    return value


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"{name} is {show(value)}; send true or false")
    return value


def _error_json(refusal: Refusal) -> bytes:
    return to_json({"error": refusal.reason})


_SERVER = Route(methods=("GET",), max_bytes=0, answer=_server, error_json=_error_json, counted=False)
_MODEL = Route(methods=("GET",), max_bytes=0, answer=_model, error_json=_error_json, counted=False)
_INDEX = Route(methods=("POST",), max_bytes=4096, answer=_index, error_json=_error_json, counted=False)
_INFER = Route(methods=("POST",), max_bytes=MAX_BODY_BYTES, answer=_infer, error_json=_error_json, kind="infer")
