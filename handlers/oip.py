"""The Open Inference Protocol v2, which KServe's and Triton's clients speak: what its REST and gRPC forms share.

One input, `image`, of N images:
    UINT8 (N, size, size, 3)   pixels as images.decode makes them: RGB, upright, of the size that the model sees
    BYTES (N,) or (N, 1)       whole JPEG, PNG, WebP or GIF files; in JSON as base64, elsewhere as they are
Outputs, of which a request may name those it wants:
    embedding FP32 (N, D)      of unit norm
    logits FP32 (N, C)         of a model with a probe
    label BYTES (N,)           of the greatest logit
    neighbor_ids BYTES (N, K)  with the parameter k; K is k, or the rows of the gallery where they are fewer
    neighbor_scores FP32 (N, K)

The protocol has no error for one image of several: a bad one fails its request, which then names its place.
"""

import math
import tomllib
from collections.abc import Collection, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from handlers.exchange import Front
from handlers.inline import show
from handlers.models import Models, version_of
from handlers.openai import MAX_INPUTS
from handlers.service import MAX_K, RequestError, Service, at_place
from handlers.together import Steps
from images.decode import ImageError

INPUT = "image"
PIXELS, ENCODED = "UINT8", "BYTES"
OF_PROBE = frozenset({"logits", "label"})
OF_GALLERY = frozenset({"neighbor_ids", "neighbor_scores"})
OUTPUTS = ("embedding", "logits", "label", "neighbor_ids", "neighbor_scores")
MAX_NUMBERS = 1 << 20  # of pixels that are no raw bytes, 37 images of 96 x 96: parsed, each takes many bytes
PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch_torchscript"}
LENGTH_BYTES = 4  # of what stands before each element of a BYTES tensor, little-endian

Images = np.ndarray | list[bytes]  # (N, size, size, 3) uint8, or N files


class Output(NamedTuple):
    """One tensor of an answer."""

    name: str
    values: np.ndarray | list[str]  # float32; or texts, row by row
    shape: list[int]

    @property
    def datatype(self) -> str:
        return "FP32" if isinstance(self.values, np.ndarray) else ENCODED

    def raw(self) -> bytes:
        """Its elements one after another; texts each behind its length."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype("<f4", copy=False).tobytes()
        texts = (text.encode() for text in self.values)
        return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in texts)


class Asked(NamedTuple):
    """A request, each part of it checked."""

    images: Images
    outputs: tuple[str, ...]
    k: int


# What is here


@cache
def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return {"name": "akin", "version": project["version"], "extensions": ["binary_tensor_data"]}


def model_metadata(models: Models, name: str, version: str | None) -> dict[str, Any]:
    """A model's tensors; raises `RequestError` 404.

    A tensor has one datatype there. It is UINT8, since what makes requests up from this can make up pixels, no files.
    """
    service = models.service(name, version)
    manifest = service.encoder.manifest
    outputs = [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, manifest.dimension]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, len(manifest.class_names)]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "neighbor_ids", "datatype": "BYTES", "shape": [-1, -1]},
        {"name": "neighbor_scores", "datatype": "FP32", "shape": [-1, -1]},
    ]
    absent = frozenset() if service.gallery is not None else OF_GALLERY
    there = set(_outputs(service)) - absent
    return {
        "name": name,
        "versions": [served.version for served in models if served.name == name],
        "platform": PLATFORMS[service.encoder.artifact.runtime],
        "inputs": [{"name": INPUT, "datatype": PIXELS, "shape": [-1, *_image_shape(service)]}],
        "outputs": [output for output in outputs if output["name"] in there],
    }


def repository(front: Front) -> list[dict[str, str]]:
    """Every version of every model, as Triton lists them."""
    return [{"name": one.name, "version": one.version, "state": "READY", "reason": ""} for one in front.models]


def _outputs(service: Service) -> list[str]:
    return [name for name in OUTPUTS if service.encoder.manifest.class_names or name not in OF_PROBE]


def _image_shape(service: Service) -> tuple[int, int, int]:
    size = service.encoder.manifest.preprocess.size
    return (size, size, 3)


# What is asked


def parse_parameters(given: dict[str, Any], also: Collection[str] = ()) -> int:
    """k, of a request's parameters. also: those that one form of the protocol has beside it.

    `priority` and `timeout`, which Triton's client knows, are wishes, and not granted here.
    """
    known = ("k", *also)
    if unknown := sorted(given.keys() - {*known, "priority", "timeout"}):
        raise RequestError(400, f"unknown parameter {show(unknown[0])}; there is {', '.join(known)}")
    k = given.get("k", 0)
    if type(k) is not int or not 0 <= k <= MAX_K:
        raise RequestError(400, f"k is {show(k)}; send a whole number from 0 (no neighbours) to {MAX_K}")
    return k


def choose_outputs(service: Service, names: Sequence[Any], k: int) -> tuple[str, ...]:
    """The outputs to answer with: those named, or all there are. Raises `RequestError`, 409 without a gallery."""
    there = _outputs(service)
    for name in names:
        if name not in there:
            raise RequestError(400, f"there is no output {show(name)}; outputs takes any of {', '.join(there)}")
    if len(set(names)) < len(names):
        raise RequestError(400, f"outputs names one twice; send each of {', '.join(there)} once at most")
    if not k and not OF_GALLERY.isdisjoint(names):
        raise RequestError(400, f"neighbors are asked for without k; send the parameter k, from 1 to {MAX_K}")
    chosen = tuple(names) or tuple(name for name in there if k or name not in OF_GALLERY)
    if not OF_GALLERY.isdisjoint(chosen):
        service.index()
    return chosen


def check_tensor_parameters(where: str, given: Collection[str]) -> None:
    """Refuse what Triton's clients may ask of a tensor and akin does not do."""
    for name in given:
        if name.startswith("shared_memory"):
            raise RequestError(400, f"{where} lies in shared memory, which is not read here; send it in the request")
        if name == "classification":
            raise RequestError(400, f"{where} is asked for as a classification; ask for label and logits instead")


def check_input(service: Service, name: Any, datatype: Any, shape: Any) -> int:
    """How many images an input has; raises `RequestError` where it is not as the model takes it."""
    if name != INPUT:
        raise RequestError(400, f"there is no input {show(name)}; the input is {INPUT!r}")
    image = _image_shape(service)
    if datatype == PIXELS:
        shapes: tuple[tuple[int, ...], ...] = (image,)
    elif datatype == ENCODED:
        shapes = ((), (1,))
    else:
        raise RequestError(400, f"datatype is {show(datatype)}; send {PIXELS} (pixels) or {ENCODED} (image files)")
    if isinstance(shape, list) and shape and tuple(shape[1:]) in shapes and type(shape[0]) is int:
        if 1 <= shape[0] <= MAX_INPUTS:
            return shape[0]
        raise RequestError(400, f"the input has {shape[0]} images; send 1 to {MAX_INPUTS}")
    plain = isinstance(shape, list) and len(shape) <= 8 and all(type(extent) is int for extent in shape)
    wanted = " or ".join(f"[{', '.join(map(str, ('N', *rest)))}]" for rest in shapes)
    shown = shape if plain else show(shape)
    raise RequestError(400, f"the shape of {datatype} is {shown}; this model takes {wanted}")


def raw_images(service: Service, datatype: str, count: int, data: bytes | memoryview) -> Images:
    """`count` images from the bytes of a tensor. Pixels are not copied."""
    if datatype == ENCODED:
        return _elements(data, count)
    shape = (count, *_image_shape(service))
    if len(data) != math.prod(shape):
        raise RequestError(400, f"{len(data)} bytes of pixels; the shape {list(shape)} has {math.prod(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _elements(data: bytes | memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor."""
    elements, place = [], 0
    for number in range(count):
        begin = place + LENGTH_BYTES
        place = begin + int.from_bytes(data[place:begin], "little")
        if place > len(data):
            where = f"image {number + 1} of {count}"
            raise RequestError(400, f"the BYTES end within {where}; send each image behind its length in 4 bytes")
        elements.append(bytes(data[begin:place]))
    if place != len(data):
        raise RequestError(400, f"{len(data) - place} bytes behind the last image; the shape says {count} images")
    return elements


def pixels_of(service: Service, count: int, numbers: Sequence[Any]) -> np.ndarray:
    """(count, size, size, 3) uint8 from its numbers, flat or nested."""
    shape = (count, *_image_shape(service))
    if max(len(numbers), math.prod(shape)) > MAX_NUMBERS:
        raise RequestError(
            413, f"more than {MAX_NUMBERS} numbers; send fewer images, pixels as raw bytes, or files as BYTES"
        )
    try:
        for _ in range(len(shape) - 1):
            if numbers and isinstance(numbers[0], list):
                numbers = list(islice(chain.from_iterable(numbers), MAX_NUMBERS))
        pixels = bytes(numbers)
    except (TypeError, ValueError) as error:
        raise RequestError(400, "the pixels are not all whole numbers from 0 to 255; send those") from error
    return np.asarray(raw_images(service, PIXELS, count, pixels))


# What is answered


def infer(service: Service, asked: Asked, timing_ms: dict[str, float]) -> Steps[list[Output]]:
    """In a worker thread: the outputs asked for, in their order. Raises `ImageError` where an image is bad."""
    pixels = _decoded(service, asked.images, timing_ms) if isinstance(asked.images, list) else asked.images
    vectors, logits, timing_ms["embed"] = yield from service.embedding(pixels)
    made = {"embedding": _numbers("embedding", vectors), "logits": _numbers("logits", logits)}
    if "label" in asked.outputs:
        names = service.encoder.manifest.class_names
        made["label"] = Output("label", [names[best] for best in logits.argmax(axis=1)], [len(logits)])
    if not OF_GALLERY.isdisjoint(asked.outputs):
        started = perf_counter()
        found = service.index().search(vectors, asked.k)
        timing_ms["search"] = service.stage_ms("search", started)
        columns = min(map(len, found))
        ids = [near.id for row in found for near in row[:columns]]
        scores = np.array([[near.score for near in row[:columns]] for row in found], np.float32)
        made["neighbor_ids"] = Output("neighbor_ids", ids, [len(found), columns])
        made["neighbor_scores"] = _numbers("neighbor_scores", scores)
    return [made[name] for name in asked.outputs]


def _numbers(name: str, values: np.ndarray) -> Output:
    return Output(name, values, list(values.shape))


def _decoded(service: Service, images: list[bytes], timing_ms: dict[str, float]) -> np.ndarray:
    """(N, size, size, 3) uint8."""
    pixels = np.empty((len(images), *_image_shape(service)), np.uint8)
    timing_ms["decode"] = 0.0
    with service.encoder.coming():
        for number, image in enumerate(images):
            decoded = service.decoded(image)
            if isinstance(decoded, ImageError):
                raise at_place(decoded, number, len(images))
            pixels[number], ms = decoded
            timing_ms["decode"] += ms
    return pixels


def described(service: Service, name: str, id: str) -> dict[str, str]:
    """What stands at the head of an answer. id: the request's own, empty if it has none."""
    head = {"model_name": name, "model_version": version_of(service)}
    return head | {"id": id} if id else head
