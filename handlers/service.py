"""One request's work, shared by every front: image bytes in, embedding, logits and neighbours out.

No HTTP here. A front hands over bytes and `Options`, gets back a plain dict, and writes it with `to_json`.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, TypedDict

import numpy as np
import orjson

from encoder.batching import Batching
from encoder.session import Encoder
from handlers.together import Pixels, Rows, Steps, by_itself
from images.decode import ImageError, decode
from index.face import Index, Neighbor
from index.thumbnails import Thumbnails

MAX_K = 1000
FIELDS = ("model", "embedding", "logits", "label", "confidence", "neighbors", "timing_ms")
ENCODINGS = ("float", "base64")
WITHOUT_NEIGHBORS = frozenset(FIELDS) - {"neighbors"}


class RequestError(Exception):
    """A request that cannot be answered, with an HTTP status and a reason that names the way out."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Answer(TypedDict, total=False):
    """What a client gets for one image; `fields` decides which keys are there.

    A model without a probe has no logits, label and confidence.
    """

    model: str
    embedding: np.ndarray  # (D,) float32, unit norm
    logits: np.ndarray  # (C,) float32
    label: str
    confidence: float
    neighbors: list[dict[str, Any]]  # id, score (cosine similarity), label, metadata
    timing_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asks for: `k` neighbours (0: none) and the fields of the answer."""

    k: int = 0
    fields: frozenset[str] = WITHOUT_NEIGHBORS
    as_base64: bool = False  # embedding and logits, as little-endian float32

    @classmethod
    def parse(cls, k: str | None = None, fields: str | None = None, encoding: str | None = None) -> "Options":
        """Validate options as they stand in a query, a form or a header; None means not given."""
        count = 0 if k is None else _parse_k(k)
        if encoding not in (None, *ENCODINGS):
            raise RequestError(400, f"encoding is {_quote(str(encoding))}; send {' or '.join(ENCODINGS)}")
        as_base64 = encoding == "base64"
        if fields is None:
            return cls(count, frozenset(FIELDS) if count else WITHOUT_NEIGHBORS, as_base64)
        return cls(count, _parse_fields(fields), as_base64)


def _parse_k(text: str) -> int:
    digits = text.strip()
    # The length test comes first: int() is slow on thousands of digits, and refuses more.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= MAX_K):
        raise RequestError(400, f"k is {_quote(text)}; send a whole number from 0 (no neighbours) to {MAX_K}")
    return int(digits)


def _parse_fields(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(","))
    unknown = sorted(names.difference(FIELDS))
    if unknown:
        raise RequestError(400, f"unknown field {_quote(unknown[0])}; fields takes any of {','.join(FIELDS)}")
    return names


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


class _Decoded(NamedTuple):
    pixels: np.ndarray  # (size, size, 3) uint8
    ms: float


class Service:
    """The encoder and the gallery behind one call. Thread safe: any number of workers share one."""

    def __init__(
        self,
        encoder: Encoder | Batching,
        gallery: Index | None = None,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
        thumbnails: Thumbnails | None = None,
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """`observe(stage, seconds)` is told of every decode, embed and search, for a front's histograms.

        thumbnails: where those of the images that are added go; None: they are not kept.
        alone: whether the request that asks is the only one, so that it may use idle cores.
        """
        self.encoder = encoder
        self.gallery = gallery
        self.thumbnails = thumbnails
        self.observe = observe
        self._alone = alone

    def answer(self, image: bytes, options: Options, timing_ms: dict[str, float] | None = None) -> Answer:
        """Answer one image; raise `ImageError` when it cannot be read."""
        (answer,) = readable(self.answer_many([image], options, timing_ms))
        return answer

    def answer_many(
        self, images: Sequence[bytes], options: Options, timing_ms: dict[str, float] | None = None
    ) -> list[Answer | ImageError]:
        """Answer several images, embedded as one batch; an unreadable one yields its error in its place.

        timing_ms: is told the milliseconds of all of them together, by stage.
        """
        return by_itself(self.answering(images, options, timing_ms))

    def answering(
        self, images: Sequence[bytes], options: Options, timing_ms: dict[str, float] | None = None
    ) -> Steps[list[Answer | ImageError]]:
        """`answer_many` as work that may share its run of the encoder with others."""
        gallery = self._gallery_for(options)
        with self.encoder.coming():
            decoded = [self.decoded(image) for image in images]
        good = [item for item in decoded if not isinstance(item, ImageError)]
        if not good:
            return [item for item in decoded if isinstance(item, ImageError)]
        batch = good[0].pixels[None] if len(good) == 1 else np.stack([item.pixels for item in good])
        vectors, logits, embed_ms = yield from self.embedding(batch)
        shared_ms = {"embed": embed_ms}
        neighbors: list[list[Neighbor]] = [[] for _ in good]
        if gallery is not None:
            started = perf_counter()
            neighbors = gallery.search(vectors, options.k)
            shared_ms["search"] = self.stage_ms("search", started)
        if timing_ms is not None:
            timing_ms |= {"decode": sum(item.ms for item in good), **shared_ms}

        answers = (
            self._assemble(options, vector, logit, near, {"decode": item.ms, **shared_ms})
            for item, vector, logit, near in zip(good, vectors, logits, neighbors, strict=True)
        )
        return [item if isinstance(item, ImageError) else next(answers) for item in decoded]

    def embedding(self, batch: np.ndarray) -> Steps[Rows]:
        """batch: (N, size, size, 3) uint8, as `images.decode` makes it."""
        rows = yield Pixels(batch, self._run)
        self.observe("embed", rows.ms / 1e3)
        return rows

    def _run(self, batch: np.ndarray) -> Rows:
        started = perf_counter()
        vectors, logits = self.encoder.embed(batch, alone=self._alone())
        return Rows(vectors, logits, _ms_since(started))

    def index(self) -> Index:
        """The gallery, for a request that is about it."""
        if self.gallery is None:
            raise RequestError(
                409, f"{self.encoder.manifest.model_id} has no gallery; start the server with --images or --index"
            )
        return self.gallery

    def close(self) -> None:
        """Close what is on disk, and end the thread that batches."""
        if isinstance(self.encoder, Batching):
            self.encoder.close()
        if self.thumbnails is not None:
            self.thumbnails.close()
        if self.gallery is not None:
            self.gallery.close()

    def decoded(self, image: bytes) -> "_Decoded | ImageError":
        """An image's pixels, or what is wrong with it."""
        started = perf_counter()
        try:
            pixels = decode(image, self.encoder.manifest.preprocess)
        except ImageError as error:
            return ImageError(error.status, error.reason)  # without a traceback, whose frames hold the image
        return _Decoded(pixels, self.stage_ms("decode", started))

    def _gallery_for(self, options: Options) -> Index | None:
        """The gallery this request searches, None when it asks for no neighbours."""
        if not options.k or "neighbors" not in options.fields:
            return None
        if self.gallery is None:
            raise RequestError(
                409,
                f"k is {options.k}, but {self.encoder.manifest.model_id} has no gallery here; send k=0 or leave k "
                "out, or start the server with --images or --index for it",
            )
        return self.gallery

    def stage_ms(self, stage: str, started: float) -> float:
        """Observe a stage that began at `started`, by perf_counter; its milliseconds."""
        ms = _ms_since(started)
        self.observe(stage, ms / 1e3)
        return ms

    def _assemble(
        self,
        options: Options,
        vector: np.ndarray,
        logits: np.ndarray,
        neighbors: list[Neighbor],
        timing_ms: dict[str, float],
    ) -> Answer:
        """The selected fields. vector: (D,) float32; logits: (C,) float32."""
        fields = options.fields
        answer: Answer = {}
        if "model" in fields:
            answer["model"] = self.encoder.manifest.model_id
        if "embedding" in fields:
            answer["embedding"] = vector
        if "logits" in fields and len(logits):
            answer["logits"] = logits
        if len(logits) and ("label" in fields or "confidence" in fields):
            best = int(logits.argmax())
            if "label" in fields:
                answer["label"] = self.encoder.manifest.class_names[best]
            if "confidence" in fields:
                # Softmax at its largest entry: that entry's own exponential is exp(0) = 1.
                answer["confidence"] = 1.0 / float(np.exp(logits - logits[best]).sum())
        if "neighbors" in fields:
            answer["neighbors"] = [neighbor._asdict() for neighbor in neighbors]
        if "timing_ms" in fields:
            answer["timing_ms"] = timing_ms
        return answer


def _ms_since(started: float) -> float:
    return round((perf_counter() - started) * 1e3, 3)


def readable(answers: Sequence[Answer | ImageError]) -> list[Answer]:
    """The answers, where each image could be read; raises `ImageError` for the first that could not."""
    good: list[Answer] = []
    for number, answer in enumerate(answers):
        if isinstance(answer, ImageError):
            # Raised itself it would be a cycle with its traceback, whose frames hold the image.
            raise at_place(answer, number, len(answers))
        good.append(answer)
    return good


def at_place(error: ImageError, number: int, count: int) -> ImageError:
    """The error of one image of several, whose request it fails."""
    return ImageError(error.status, f"image {number + 1} of {count}: {error.reason}" if count > 1 else error.reason)


def to_json(value: object) -> bytes:
    """JSON bytes; float32 arrays are written with the fewest digits that read back as the same float32."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def answer_json(answer: Answer, options: Options) -> bytes:
    """The answer to one image."""
    return to_json(_encoded(answer, options))


def _encoded(answer: Answer, options: Options) -> dict[str, Any]:
    if not options.as_base64:
        return {**answer}
    return {name: in_base64(value) if isinstance(value, np.ndarray) else value for name, value in answer.items()}


def in_base64(numbers: np.ndarray) -> str:
    """Base64 of little-endian float32."""
    return b64encode(numbers.astype("<f4", copy=False).tobytes()).decode()


def batch_json(answers: Sequence[Answer | ImageError], options: Options) -> bytes:
    """The answer to several images: a list in their order, each with a status of its own."""
    return to_json(
        [
            {"status": item.status, "error": item.reason}
            if isinstance(item, ImageError)
            else {"status": 200, **_encoded(item, options)}
            for item in answers
        ]
    )


def error_json(status: int, reason: str) -> bytes:
    """The body of every error answer."""
    return to_json({"status": status, "error": reason})
