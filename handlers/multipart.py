"""A multipart/form-data body taken apart: the images it carries, and the options among its parts."""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from handlers.service import RequestError

MAX_IMAGES = 128  # one request is one batch of one worker: more would hold up the others and the memory
OPTION_NAMES = ("k", "fields", "encoding")
HOW_TO = "with curl write -F image=@photo.jpg"


@dataclass
class Form:
    """What a form held: images in their order, options by name."""

    images: list[bytes] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


@dataclass
class _Part:
    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    name: str = ""
    data: bytearray = field(default_factory=bytearray)


class _Reader:
    """The parser's callbacks: they gather one part at a time and hand it to the form."""

    def __init__(self) -> None:
        self.form = Form()
        self.complete = False
        self._part = _Part()

    def on_part_begin(self) -> None:
        self._part = _Part()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def on_header_end(self) -> None:
        part = self._part
        if part.header_name.lower() == b"content-disposition":
            _, parameters = parse_options_header(part.header_value.decode("latin-1"))
            part.name = parameters.get(b"name", b"").decode("utf-8", "replace")
        part.header_name.clear()
        part.header_value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data += data[start:end]

    def on_part_end(self) -> None:
        part, form = self._part, self.form
        if part.name in OPTION_NAMES:
            form.options[part.name] = part.data.decode("utf-8", "replace")
        elif len(form.images) == MAX_IMAGES:
            raise RequestError(413, f"more than {MAX_IMAGES} images in one request; send them in several")
        else:
            form.images.append(bytes(part.data))

    def on_end(self) -> None:
        self.complete = True


def parse_multipart(body: bytes, content_type: str) -> Form:
    """Every part but the options is an image, whatever its name; `RequestError` for broken forms."""
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise RequestError(400, f"the multipart content type names no boundary; {HOW_TO}")
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_part_data": reader.on_part_data,
                "on_part_end": reader.on_part_end,
                "on_end": reader.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, f"broken multipart body ({error}); {HOW_TO}") from error
    if not reader.complete:
        raise RequestError(400, f"the multipart body ends before its closing boundary; {HOW_TO}")
    if not reader.form.images:
        raise RequestError(400, f"the multipart body holds no image; {HOW_TO}")
    return reader.form
