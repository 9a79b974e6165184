"""A batch of TorchServe requests answered: one embedding call for all that ask alike, a status for each."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from handlers.about import new_id
from handlers.refusals import internal_error
from handlers.service import Answer, Options, RequestError, Service, answer_json, batch_json, error_json
from handlers.torchserve.inputs import Inputs
from images.decode import ImageError


class Reply(NamedTuple):
    """What one request gets: HTTP status and JSON."""

    status: int
    payload: bytes
    timing_ms: Mapping[str, float] = MappingProxyType({})  # by stage, of the batch it was in


def answer_batch(service: Service, requests: Sequence[Inputs | RequestError]) -> list[Reply]:
    """One reply for each request, in their order; what is wrong with one does not touch the others."""
    replies: dict[int, Reply] = {}
    alike: defaultdict[Options, dict[int, Inputs]] = defaultdict(dict)
    for number, request in enumerate(requests):
        if isinstance(request, RequestError):
            replies[number] = _refusal(request)
        else:
            alike[request.options][number] = request
    for options, group in alike.items():
        replies |= zip(group, _answer_alike(service, options, list(group.values())), strict=True)
    return [replies[number] for number in range(len(requests))]


def _answer_alike(service: Service, options: Options, requests: Sequence[Inputs]) -> list[Reply]:
    images = [image for request in requests for image in request.images]
    timing_ms: dict[str, float] = {}
    try:
        answers = iter(service.answer_many(images, options, timing_ms))
    except RequestError as error:
        return [_refusal(error) for _ in requests]
    except Exception as error:
        return [_refusal(RequestError(500, internal_error(error, new_id()))) for _ in requests]
    replies = [_reply([next(answers) for _ in request.images], options) for request in requests]
    return [reply._replace(timing_ms=timing_ms) for reply in replies]


def _reply(answers: Sequence[Answer | ImageError], options: Options) -> Reply:
    """Several images get a list with a status each, one image its answer or its error."""
    if len(answers) > 1:
        return Reply(200, batch_json(answers, options))
    (answer,) = answers
    return _refusal(answer) if isinstance(answer, ImageError) else Reply(200, answer_json(answer, options))


def _refusal(error: RequestError | ImageError) -> Reply:
    return Reply(error.status, error_json(error.status, error.reason))
