"""The Open Inference Protocol v2 over gRPC: beside the HTTP server, on the same queue, workers and models.

    client = tritonclient.grpc.InferenceServerClient("127.0.0.1:8081")
    client.infer("encoder", [image], parameters={"k": 5}).as_numpy("embedding")

Errors have the words of the other fronts and the nearest status of gRPC; `retry-after`, `server-timing` and
`x-request-id` stand in the trailing metadata. A call whose client cancels it, or whose deadline passes, is not
computed unless it has begun.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from handlers import oip_proto as messages
from handlers.about import HeaderList, about, request_id
from handlers.admission import QueueFull
from handlers.exchange import (
    CLIENT_GONE,
    MAX_HELD_BYTES,
    Front,
    Reply,
    Request,
    refusal,
)
from handlers.models import Models
from handlers.oip import (
    ENCODED,
    Asked,
    Images,
    check_input,
    check_tensor_parameters,
    choose_outputs,
    described,
    infer,
    model_metadata,
    parse_parameters,
    pixels_of,
    raw_images,
    repository,
    server_metadata,
)
from handlers.openai import MAX_BODY_BYTES
from handlers.refusals import Refusal
from handlers.service import RequestError, Service
from handlers.together import Steps

SERVICE = "inference.GRPCInferenceService"
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
QUICK_SECONDS = 1.0  # to send a message; who takes longer needs one of a few places, since gRPC holds what has come
MAX_SLOW = MAX_HELD_BYTES // MAX_BODY_BYTES
SLOW_SECONDS = 60.0
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_BODY_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: the limit is one before decompression
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.so_reuseport", 1),  # beside the socket that holds the port, and those of other processes
)

Context = Any  # grpc.aio.ServicerContext
Answer = Callable[[Front, Request], Awaitable[bytes]]


class GrpcServer:
    """Serves `front` on a port, from `start` to `stop`, both within the event loop of the HTTP server."""

    def __init__(self, front: Front, address: str, port: int, calls: int) -> None:
        """address: as getsockname() has it. port: 0 takes a free one. calls: at a time; more: RESOURCE_EXHAUSTED."""
        self._front = front
        self._address = f"[{address}]" if ":" in address else address
        self.port = port
        self._calls = calls
        self._slow = 0  # calls that have taken longer than QUICK_SECONDS to send their message

    async def start(self) -> None:
        """Listen."""
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=self._calls)
        methods = {name: grpc.stream_unary_rpc_method_handler(self._handler(name)) for name in ANSWERS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.port = self._server.add_insecure_port(f"{self._address}:{self.port}")
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and finish those under way within `grace_s`."""
        await self._server.stop(grace_s)

    def _handler(self, name: str) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]:
        # Every method is a stream of requests to gRPC, so that it is we who read, within limits; there comes one.
        async def handle(_: AsyncIterator[bytes], context: Context) -> bytes:
            with self._front.under_way.one():
                return await self._call(name, context)

        return handle

    async def _call(self, name: str, context: Context) -> bytes:
        """Answer one call, whatever comes."""
        front, request = self._front, _request(name, context)
        reply: Reply | None = None
        full = False
        payload = b""
        arrived = perf_counter()
        try:
            if name not in OPEN:
                front.access.check_read(request.headers)
            await self._read(request, context)
            arrived = perf_counter()
            payload = await ANSWERS[name](front, request)
        except asyncio.CancelledError:
            front.metrics.reject("client gone")
            front.note(request, CLIENT_GONE, perf_counter() - arrived)
            raise
        except Exception as error:
            # Not kept beyond this block: its traceback holds this frame, and so the body.
            reply = refusal(front, request, error, _text)
            full = isinstance(error, QueueFull)
        finally:
            front.settle(request)  # what abort raises keeps this frame, and the request, until the collector comes
        if full:
            await front.refusals.turn(request.gone)
        seconds, status = perf_counter() - arrived, 200 if reply is None else reply.status
        if name == "ModelInfer":
            front.metrics.answered(status, request.service, seconds, request.timing_ms)
        front.note(request, status, seconds)
        trailer = _metadata(about(request.id, seconds, request.timing_ms))
        if reply is None:
            context.set_trailing_metadata(trailer)
            return payload
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else CODES.get(status, grpc.StatusCode.UNKNOWN)
        await context.abort(code, reply.payload.decode(), (*trailer, *_metadata(reply.headers)))
        raise AssertionError("abort raises")

    async def _read(self, request: Request, context: Context) -> None:
        """The call's message, which then is counted in `front.held_bytes`."""
        reading = asyncio.ensure_future(context.read())
        try:
            if not (await asyncio.wait((reading,), timeout=QUICK_SECONDS))[0]:
                await self._wait_longer(reading)
            body = reading.result()
        finally:
            reading.cancel()
        if body is grpc.aio.EOF:
            raise RequestError(400, "the call has no message; send one")
        self._front.hold(len(body))
        request.body, request.size = bytes(body), len(body)

    async def _wait_longer(self, reading: "asyncio.Future[bytes]") -> None:
        if self._slow >= MAX_SLOW:
            self._front.metrics.reject("slow body")
            raise RequestError(
                503, f"{MAX_SLOW} calls are sending for more than {QUICK_SECONDS:g} s already; send again later"
            )
        self._slow += 1
        try:
            if not (await asyncio.wait((reading,), timeout=SLOW_SECONDS))[0]:
                self._front.metrics.reject("slow body")
                raise RequestError(
                    408, f"the message is not whole after {SLOW_SECONDS:g} s; send less, or over a faster line"
                )
        finally:
            self._slow -= 1


def _request(name: str, context: Context) -> Request:
    """A call as what it is on the wire, a POST of HTTP/2."""
    headers = {
        key.encode(): value if isinstance(value, bytes) else value.encode()
        for key, value in context.invocation_metadata()
    }
    client = unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")  # of ipv6:%5B::1%5D:50504
    scope = {"method": "POST", "path": f"/{SERVICE}/{name}", "client": (client, 0)}
    return Request(scope, headers, request_id(headers), kind="infer")


def _text(refused: Refusal) -> bytes:
    return refused.reason.encode()


def _metadata(headers: HeaderList) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode(), value.decode()) for name, value in headers)


# The methods


async def _server_live(front: Front, request: Request) -> bytes:
    return _bytes(messages.ServerLiveResponse(live=front.wedged() is None))


async def _server_ready(front: Front, request: Request) -> bytes:
    return _bytes(messages.ServerReadyResponse(ready=front.models.ready))


async def _server_metadata(front: Front, request: Request) -> bytes:
    return _bytes(messages.ServerMetadataResponse(**server_metadata()))


async def _model_ready(front: Front, request: Request) -> bytes:
    given = _parsed(messages.ModelReadyRequest, request.body)
    try:
        front.service(given.name, given.version or None)
    except RequestError:  # not here, or not yet
        return _bytes(messages.ModelReadyResponse(ready=False))
    return _bytes(messages.ModelReadyResponse(ready=True))


async def _model_metadata(front: Front, request: Request) -> bytes:
    given = _parsed(messages.ModelMetadataRequest, request.body)
    return _bytes(messages.ModelMetadataResponse(**model_metadata(front.models, given.name, given.version or None)))


async def _repository_index(front: Front, request: Request) -> bytes:
    return _bytes(messages.RepositoryIndexResponse(models=repository(front)))


async def _model_infer(front: Front, request: Request) -> bytes:
    front.service()
    return await front.run_shared(request, partial(_work, front.models, request))


ANSWERS: dict[str, Answer] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ServerMetadata": _server_metadata,
    "ModelReady": _model_ready,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _model_infer,
    "RepositoryIndex": _repository_index,
}
OPEN = ("ServerLive", "ServerReady")  # without a token where reads are protected


def _work(models: Models, request: Request) -> Steps[bytes]:
    """In a worker thread: from the message to the bytes of the answer."""
    given = _parsed(messages.ModelInferRequest, request.body)
    service = request.service = models.service(given.model_name, given.model_version or None)
    k = parse_parameters({name: _value(parameter) for name, parameter in given.parameters.items()})
    chosen = choose_outputs(service, [output.name for output in given.outputs], k)
    for output in given.outputs:
        check_tensor_parameters(output.name, output.parameters)
    outputs = yield from infer(service, Asked(_images(service, given), chosen, k), request.timing_ms)
    return _bytes(
        messages.ModelInferResponse(
            **described(service, given.model_name, given.id),
            outputs=[{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in outputs],
            raw_output_contents=[output.raw() for output in outputs],
        )
    )


def _images(service: Service, given: Any) -> Images:
    """The images of the one input that a ModelInferRequest has to have."""
    if len(given.inputs) != 1 or len(given.raw_input_contents) > 1:
        raw = f" and {len(given.raw_input_contents)} raw contents" if given.raw_input_contents else ""
        raise RequestError(400, f"{len(given.inputs)} inputs{raw}; send one, 'image'")
    (tensor,) = given.inputs
    count = check_input(service, tensor.name, tensor.datatype, list(tensor.shape))
    check_tensor_parameters(tensor.name, tensor.parameters)
    if given.raw_input_contents:
        return raw_images(service, tensor.datatype, count, given.raw_input_contents[0])
    if tensor.datatype != ENCODED:
        return pixels_of(service, count, tensor.contents.uint_contents)
    images = list(tensor.contents.bytes_contents)
    if len(images) != count:
        raise RequestError(400, f"{len(images)} images in bytes_contents; the shape says {count}")
    return images


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else None


def _parsed(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        wanted = kind.DESCRIPTOR.name
        raise RequestError(400, f"the message is no {wanted} ({error}); see handlers/oip.proto") from error


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
