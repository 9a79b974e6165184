"""What goes wrong, as a client is told it: every front's words and statuses, without a server around them."""

import logging
import math

from handlers.about import HeaderList
from handlers.admission import QueueFull
from handlers.service import RequestError, error_json
from images.decode import ImageError
from index.errors import GalleryError

Refusal = RequestError | ImageError

log = logging.getLogger("akin")


def refusal_of(error: Exception, request: str) -> Refusal:
    """What the client of a request that ended in `error` is told."""
    if isinstance(error, RequestError | ImageError):
        return error
    if isinstance(error, QueueFull):
        reason = f"{error.waiting} requests wait already, about {error.wait_s * 1e3:.0f} ms of work; send again later"
        return RequestError(503, reason)
    if isinstance(error, GalleryError):
        return of_gallery(error)
    return RequestError(500, internal_error(error, request))


def plain_error(refusal: Refusal) -> bytes:
    """The JSON of an error where no other API says how it looks."""
    return error_json(refusal.status, refusal.reason)


def retry_after(seconds: float) -> HeaderList:
    """In whole seconds, as the header wants it; at least one."""
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


def check_encoding(coding: str) -> None:
    """Refuse a body that would have to be unpacked first: a small one may hold gigabytes."""
    if coding not in ("", "identity"):
        raise RequestError(415, f"the body is encoded as {coding[:40]!r}; send it as it is")


def internal_error(error: Exception, request: str) -> str:
    """Write an unexpected exception to the log; what the client is told instead."""
    log.error("request %s failed", request, exc_info=error)
    return f"internal error; the server's log has it as request {request}"


def of_gallery(error: GalleryError) -> RequestError:
    """What an error of the index means to a client; what nobody outside can put right goes to the log too."""
    if error.status == 500:
        log.error("the gallery failed: %s", error)
    return RequestError(error.status, str(error))
