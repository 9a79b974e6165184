"""The log: one line an event on stderr, as text or as JSON. Ids of requests and sizes, never what was sent."""

import logging
import sys
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from handlers.exchange import AccessLog, Request

FORMATS = ("text", "json")
TEXT = "%(asctime)s %(levelname)s %(message)s"

access = logging.getLogger("akin.access")


class JsonFormatter(logging.Formatter):
    """A line of JSON: time, level, logger, message, and what the event brought along."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= getattr(record, "event", {})
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()


def configure(form: str, requests: bool) -> None:
    """form: one of FORMATS. requests: a line for each of them too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a line for each broken form; our answer says more
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage, which decode answers for
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    access.setLevel(logging.INFO if requests else logging.WARNING)


def access_log() -> "AccessLog | None":
    """What is told of every answer; None where nobody wants to hear."""
    return _log if access.isEnabledFor(logging.INFO) else None


def turned_away(request: str, client: tuple[str, int] | None, status: int, reason: str) -> None:
    """A line for what was refused before it was a request."""
    event = {"request": request, "client": (client or ("", 0))[0], "status": status, "reason": reason}
    access.info("%s turned away with %d: %s", request, status, reason, extra={"event": event})


def _log(request: "Request", status: int, seconds: float) -> None:
    scope = request.scope
    path = scope["path"].encode("utf-8", "replace").decode()[:200]
    event = {
        "request": request.id,
        "client": (scope.get("client") or ("", 0))[0],
        "method": scope["method"],
        "path": path,
        "status": status,
        "bytes": request.size,
        "ms": round(seconds * 1e3, 3),
        "stages_ms": {stage: round(ms, 3) for stage, ms in request.timing_ms.items()},
    }
    access.info(
        "%s %s %r %d %.1f ms", request.id, scope["method"], path, status, seconds * 1e3, extra={"event": event}
    )
