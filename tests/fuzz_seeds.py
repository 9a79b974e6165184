"""What the fuzzers begin with: small generated pictures of every kind that decode takes, and bodies with them."""

import io
import json
import tarfile
from base64 import b64encode
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.pictures import encode, encode_with_orientation, scene

DIMENSION = 4


def pictures() -> Iterator[bytes]:
    """Encoded pictures of at most some KB: each format, mode and way of packing, some large enough to be scaled."""
    photo = scene(40, 30)
    clear = photo.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    grey = np.asarray(photo.convert("L"))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    frames = [scene(40, 30, seed) for seed in range(3)]
    palette = photo.quantize(16)
    yield encode(photo, quality=80)
    yield encode(photo, quality=80, progressive=True)
    yield encode(photo, quality=80, progressive=True, subsampling=0, restart_marker_blocks=1)
    yield encode(photo, quality=80, dpi=(72, 72), comment=b"a comment")
    yield encode(photo.convert("L"), quality=80)
    yield encode(photo.convert("CMYK"), quality=80)
    yield encode(scene(300, 200), quality=50)  # scaled in the DCT domain
    yield from (encode_with_orientation(photo, orientation) for orientation in range(9))
    for picture in (photo, clear, palette, sixteen, *(photo.convert(mode) for mode in ("1", "L", "LA"))):
        yield encode(picture, "PNG")
    yield encode(palette, "PNG", bits=4, transparency=3)
    yield encode(palette, "PNG", transparency=bytes(range(16)))
    yield encode(photo, "PNG", transparency=(1, 2, 3))
    yield encode(sixteen, "PNG", transparency=257)
    yield encode_with_orientation(photo, 6, "PNG")
    yield encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield encode(photo, "WEBP", quality=60)
    yield encode(photo, "WEBP", lossless=True)
    yield encode(clear, "WEBP", quality=60)
    yield encode_with_orientation(photo, 6, "WEBP")
    yield encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=20)
    yield encode(palette, "GIF")
    yield encode(palette, "GIF", transparency=3, interlace=True)
    yield encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=20, loop=0, disposal=2)


def forms() -> Iterator[bytes]:
    """A content type, a line break, and a multipart body of that type."""
    photo = encode(scene(8, 8), "PNG")
    parts = [("image", photo), ("k", b"3"), ("fields", b"embedding,label"), ("other", photo)]
    for boundary, chosen in (("b", parts[:1]), ("----long-boundary", parts), ('"quoted b"', parts[1:2])):
        bare = boundary.strip('"').encode()
        body = b"".join(
            b'--%b\r\ncontent-disposition: form-data; name="%b"; filename="%b"\r\n\r\n%b\r\n'
            % (bare, name.encode(), name.encode(), data)
            for name, data in chosen
        )
        yield b"multipart/form-data; boundary=%b\n%b--%b--\r\n" % (boundary.encode(), body, bare)


def texts() -> Iterator[bytes]:
    """Images as JSON carries them."""
    photo = encode(scene(8, 8), "PNG")
    yield b64encode(photo)
    yield b"data:image/png;base64," + b64encode(photo)
    yield b"data:image/svg+xml,<svg/>"
    yield b"https://example.org/cat.jpg"


def rows() -> Iterator[bytes]:
    """Rows of the index and searches as JSON."""
    photo = b64encode(encode(scene(8, 8), "PNG")).decode()
    vector = [0.5, -0.5, 0.5, 0.5]
    yield from (
        json.dumps(body).encode()
        for body in (
            {"vector": vector, "label": "cat", "metadata": {"year": 1998, "tags": ["a", {"b": None}]}},
            {"image": photo, "label": None},
            {"vector": vector, "k": 5, "min_score": 0.5, "filter": {"label": ["cat", "dog"], "year": {"gte": 1990}}},
            {"vectors": [vector, vector], "filter": {"indoors": True, "name": {"gt": "a", "lte": "b"}}},
            {"id": "cats/1.jpg"},
        )
    )


def streams() -> Iterator[bytes]:
    """Bodies of /index/bulk: NDJSON, and tar as its writers differ."""
    lines = [json.dumps({"id": str(number), "vector": [0.5] * DIMENSION}).encode() for number in range(3)]
    yield b"\n".join(lines)
    photo = encode(scene(8, 8), "PNG")
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=format) as tar:
            for name in ("cats/1.png", "long/" * 18 + "名.png"):
                info = tarfile.TarInfo(name)
                info.size = len(photo)
                tar.addfile(info, io.BytesIO(photo))
            folder = tarfile.TarInfo("cats")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        yield packed.getvalue().rstrip(b"\0") + bytes(1024)


def tensors() -> Iterator[bytes]:
    """How many images, and each behind its length, as the Open Inference Protocol has them."""
    for images in ([], [encode(scene(8, 8), "PNG")], [b"", b"12", b"x" * 300]):
        yield bytes([len(images)]) + b"".join(len(image).to_bytes(4, "little") + image for image in images)
