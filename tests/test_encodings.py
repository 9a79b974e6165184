"""The encodings that are compared are those that were asked for."""

from dataclasses import replace

import numpy as np
import pytest

from load_tests import encodings, server
from load_tests.encodings import ENCODINGS
from tests.server import Server
from tests.serving import JPEG, PATH


@pytest.fixture(scope="module")
def native_server(server: Server) -> Server:
    """The one that all tests share, by another name: `server` is a module here."""
    return server


def test_an_encoding_that_is_not_what_was_asked_for_is_no_result(
    native_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = server.Server(native_server.port, native_server.process, 0.0)
    encodings.check(served, PATH, JPEG)
    monkeypatch.setitem(ENCODINGS, "base64", replace(ENCODINGS["base64"], query=""))
    with pytest.raises(server.ServerError, match="asked for base64, the server sent what is none"):
        encodings.check(served, PATH, JPEG)
    monkeypatch.setitem(ENCODINGS, "base64", replace(ENCODINGS["JSON floats"], content_type="text/plain"))
    with pytest.raises(server.ServerError, match="base64, which is text/plain, the server sent application/json"):
        encodings.check(served, PATH, JPEG)
    monkeypatch.setitem(ENCODINGS, "base64", replace(ENCODINGS["JSON floats"], read=lambda body: np.zeros(3)))
    with pytest.raises(server.ServerError, match="the embedding as base64 is not the one as JSON floats"):
        encodings.check(served, PATH, JPEG)
