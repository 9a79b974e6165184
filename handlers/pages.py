"""The page at `/`, the files it is made of, and the map of the gallery that it shows.

The files are read once, at import; nothing else in the folder or outside it has a path. The page may load from this
server alone and runs no script but its own file's: what a hostile label writes into it stays text.
"""

from functools import partial
from hashlib import sha256
from pathlib import Path
from weakref import WeakKeyDictionary

from handlers.exchange import Front, Reply, Request, Route, Scope
from handlers.inline import check_keys, show
from handlers.refusals import plain_error
from handlers.requests import query_of
from handlers.service import RequestError, Service, to_json
from index.face import Index
from index.projection import MAX_POINTS, GalleryMap

HOME = "/"
FILES = "/page/"
MAP = "/index/map"
FOLDER = Path(__file__).parent / "page"
CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
GUARDS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),  # asked for each time, sent when it has changed
    (b"vary", b"accept"),  # the same path answers with JSON those who ask for that
)
MAX_BODY_BYTES = 0


def route_for(scope: Scope) -> Route | None:
    """The route of a request that is the page's."""
    path, method = scope["path"], scope["method"]
    if path == HOME and method in ("GET", "HEAD"):
        return _HOME if wants_page(scope) else None
    if path == MAP and method == "GET":
        return _MAP
    return _FILES.get(path.removeprefix(FILES)) if path.startswith(FILES) else None


def wants_page(scope: Scope) -> bool:
    """Whether the client shows pages to people: browsers name text/html, other clients take anything."""
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _file_route(file: Path) -> Route:
    payload = file.read_bytes()
    etag = b'"%s"' % sha256(payload).hexdigest()[:16].encode()
    whole = Reply(payload, CONTENT_TYPES[file.suffix], (*GUARDS, (b"etag", etag)))
    unchanged = whole._replace(payload=b"", status=304)

    async def answer(front: Front, request: Request) -> Reply:
        known = request.headers.get(b"if-none-match", b"").split(b",")
        return unchanged if etag in (one.strip().removeprefix(b"W/") for one in known) else whole

    return Route(("GET", "HEAD"), MAX_BODY_BYTES, answer, plain_error, counted=False)


async def _map(front: Front, request: Request) -> bytes:
    query = query_of(request.scope)
    check_keys(query, ("limit",))
    limit = _parse_limit(query.get("limit", str(MAX_POINTS)))
    service = front.service(request.model)
    return await front.run(request, partial(_draw, service, limit), service, front.drawers)


def _draw(service: Service, limit: int) -> bytes:
    index = service.index()
    drawn = _maps.setdefault(index, GalleryMap()).get(index)
    points = [point._asdict() for point in drawn.points[:limit]]
    return to_json({"points": points, "rows": drawn.rows, "sampled": len(points) < drawn.rows})


def _parse_limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MAX_POINTS):
        raise RequestError(400, f"limit is {show(text)}; send a whole number from 1 to {MAX_POINTS}")
    return int(text)


_maps: WeakKeyDictionary[Index, GalleryMap] = WeakKeyDictionary()  # for the thread of `Front.drawers` alone


_FILES = {file.name: _file_route(file) for file in sorted(FOLDER.iterdir()) if file.suffix in CONTENT_TYPES}
_HOME = _FILES["index.html"]
_MAP = Route(("GET",), MAX_BODY_BYTES, _map, plain_error, counted=False, kind="map")
