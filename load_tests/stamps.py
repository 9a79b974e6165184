"""`akin serve`, noting the time at the seams of its own code: what load_tests/profile_request.py asks.

    .venv/bin/python load_tests/stamps.py stamps.json --port 8080      # the file is written when it ends
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[1]


def serve(file: Path, arguments: Sequence[str]) -> int:
    """Serve until a signal ends it; then `file` gets [name, perf_counter()] of every stamp, as they came."""
    from encoder.session import Encoder
    from handlers import app, exchange, native, predictions, service
    from handlers.admission import Admission
    from handlers.wire import Wire

    stamps: list[tuple[str, float]] = []

    def stamp(holder: Any, name: str, before: str, after: str | None = None) -> None:
        inner: Callable[..., Any] = getattr(holder, name)

        def stamped(*args: Any, **kwargs: Any) -> Any:
            stamps.append((before, perf_counter()))
            result = inner(*args, **kwargs)
            if after:
                stamps.append((after, perf_counter()))
            return result

        setattr(holder, name, stamped)

    stamp(Wire, "data_received", "read")
    stamp(app, "exchange", "routed")
    stamp(Admission, "submit", "submitted")
    stamp(predictions, "_work", "begun")
    stamp(service, "decode", "decoding", "decoded")
    stamp(Encoder, "embed", "embedding", "embedded")
    stamp(predictions, "answer_json", "writing", "written")
    stamp(Admission, "_settle", "settled")
    stamp(exchange, "send_reply", "replying")
    code = native.main(arguments)
    file.write_text(json.dumps(stamps), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.exit(serve(Path(sys.argv[1]), sys.argv[2:]))
