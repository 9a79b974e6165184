"""What a gRPC server inside this process does, for tests of what no client can see. Run in a process of its own:
grpc.aio leaves threads behind that do not go together with all that other tests have loaded.

    python -m tests.grpc_alone kept STORE      # a test's `store`; ends with 0 where all is as it should be
"""

import asyncio
import gc
import sys
from pathlib import Path

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from encoder.session import Encoder
from handlers import oip_grpc
from handlers.exchange import Front, Request
from handlers.oip_grpc import SERVICE, GrpcServer
from handlers.service import Service
from tests.pictures import encode, scene
from tests.serving import JPEG, front_with, samples

INFER = f"/{SERVICE}/ModelInfer"


def message(photo: bytes) -> bytes:
    """A ModelInferRequest about one image file."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [photo]}}
    return bytes(service_pb2.ModelInferRequest(model_name="encoder", inputs=[tensor]).SerializeToString())


async def slow(front: Front) -> None:
    """Calls that take long to send their message are few, and end."""
    oip_grpc.QUICK_SECONDS, oip_grpc.SLOW_SECONDS, oip_grpc.MAX_SLOW = 0.02, 0.5, 1
    served = GrpcServer(front, "127.0.0.1", 0, calls=10)
    await served.start()
    codes = set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        for call in [channel.stream_unary(INFER)() for _ in range(2)]:  # and nothing is sent
            try:
                await call
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
        assert len(await channel.unary_unary(INFER)(message(JPEG))) > 100
    await served.stop(1)
    assert codes == {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}, codes
    assert samples(front.metrics.render().decode())['akin_rejected_total{reason="slow body"}'] == 2
    assert front.held_bytes == 0


async def kept(front: Front) -> None:
    """A refused call does not keep its message."""
    served = GrpcServer(front, "127.0.0.1", 0, calls=10)
    await served.start()
    gc.disable()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        try:
            await channel.unary_unary(INFER)(message(encode(scene(20, 20), "TIFF")))
        except grpc.aio.AioRpcError as error:
            assert "'TIFF'" in str(error.details())
        else:
            raise AssertionError("a TIFF was taken")
    await served.stop(1)
    assert [one for one in gc.get_objects() if isinstance(one, Request) and one.body] == []


if __name__ == "__main__":
    front = front_with(Service(Encoder.load(Path(sys.argv[2]))))
    asyncio.run({"slow": slow, "kept": kept}[sys.argv[1]](front))
    front.close()
