"""Is TorchServe ready? It says Healthy while every worker dies, so a prediction with a known answer decides."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from io import BytesIO

import numpy as np
from PIL import Image

from encoder.golden import check_golden, golden_input
from encoder.manifest import Manifest
from handlers.torchserve.process import StartError, TorchServe

POLL_SECONDS = 0.1
ANSWER_SECONDS = 1.0  # then look again whether the server still lives
PATIENCE_SECONDS = 120.0


def wait_until_right(
    server: TorchServe,
    manifest: Manifest,
    address: tuple[str, int],
    headers: Callable[[], Mapping[str, str]],
    stopped: threading.Event,
) -> bool:
    """Send the picture of the first golden vector until that vector comes back; False when `stopped` first.

    `headers` is asked anew for each try: the token is on disk only once the server has begun.
    """
    golden = manifest.golden[0]
    picture = BytesIO()
    Image.fromarray(golden_input(golden.seed, manifest.preprocess.size)).save(picture, "PNG")
    deadline = time.monotonic() + PATIENCE_SECONDS
    last = "nothing"
    while not stopped.is_set():
        server.check()
        try:
            status, body = _post(address, picture.getvalue(), {"akin-fields": "model,embedding", **headers()})
        except (OSError, HTTPException) as error:
            status, body = 0, str(error).encode()
        if status == 200:
            answer = json.loads(body)
            if answer["model"] != manifest.model_id:
                raise StartError(f"port {address[1]} answers for {answer['model']}, not {manifest.model_id}")
            check_golden([golden], np.array([answer["embedding"]]), manifest.golden_min_cosine, "TorchServe")
            return True
        last = f"{status} {body[:200].decode(errors='replace')}" if status else last
        if time.monotonic() > deadline:
            raise server.failure(f"no answer within {PATIENCE_SECONDS:.0f} s (the last was: {last})")
        stopped.wait(POLL_SECONDS)
    return False


def _post(address: tuple[str, int], body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection = HTTPConnection(*address, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", "/predictions/encoder", body, {"content-type": "image/png", **headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
