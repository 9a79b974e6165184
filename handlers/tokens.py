"""Who may write: whoever has the token; where there is none, only this machine, unless others were let in."""

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handlers.service import RequestError

VARIABLE = "AKIN_TOKEN"
MAX_LENGTH = 1024
HOW_TO = "write one line of printable ASCII without spaces, as `openssl rand -hex 32` prints it"


class TokenError(Exception):
    """A token that cannot be one. The message never shows it."""


@dataclass(frozen=True)
class Access:
    """The rule for PUT, DELETE and bulk, and where it is asked for, for everything else."""

    token: bytes | None = field(default=None, repr=False)
    exposed: bool = False  # others can reach the server, and nobody has said that they may write
    protect_reads: bool = False  # reads need the token too

    def __str__(self) -> str:
        if self.token is not None:
            return "with the token"
        return "refused: give a token, see --help" if self.exposed else "open, without a token"

    def check_write(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise `RequestError` 401 or 403 unless these headers may write."""
        if self.token is None:
            if self.exposed:
                raise RequestError(
                    403,
                    "writes are refused: other machines can reach this server and it has no token; start it with "
                    f"--token-file or {VARIABLE}, with --open-writes, or on --host 127.0.0.1",
                )
            return
        self._check(headers, "writes need")

    def check_read(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise `RequestError` 401 unless these headers may read."""
        if self.protect_reads and self.token is not None:
            self._check(headers, "this server wants")

    def _check(self, headers: Mapping[bytes, bytes], wants: str) -> None:
        assert self.token is not None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
            what = "not that one" if scheme else "none"
            raise RequestError(
                401, f"{wants} the server's token, this has {what}; send 'Authorization: Bearer ...'"
            )


def read_token(file: Path | None) -> bytes | None:
    """The token in `file`, else the one in AKIN_TOKEN, else none."""
    if file is not None:
        try:
            return _checked(file.read_bytes(), str(file))
        except OSError as error:
            raise TokenError(
                f"no token can be read from {file} ({error.strerror}); name a file of one line"
            ) from error
    given = os.environ.get(VARIABLE)
    return None if given is None else _checked(os.fsencode(given), VARIABLE)


def _checked(given: bytes, where: str) -> bytes:
    token = given.strip()
    if not 0 < len(token) <= MAX_LENGTH:
        raise TokenError(f"the token in {where} has {len(token)} bytes; the limit is {MAX_LENGTH}: {HOW_TO}")
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise TokenError(f"the token in {where} has spaces, line breaks or characters beyond ASCII; {HOW_TO}")
    return token
