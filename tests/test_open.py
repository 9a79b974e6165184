"""One way to any index: what the address names, and how sizes are written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.errors import RowRefused
from index.gallery import Gallery
from index.open import open_index, parse_bytes

DIGEST = "a" * 64
REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1", 1),
        ("123456789", 123_456_789),
        ("5B", 5),
        ("2GB", 2 * 10**9),
        ("2 gb", 2 * 10**9),
        ("2G", 2 * 10**9),
        ("512MiB", 512 << 20),
        ("512mi", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("0.5k", 500),
        ("1KiB", 1024),
        (" 3 MB ", 3 * 10**6),
    ],
)
def test_a_size_is_read_as_it_is_written(text: str, count: int) -> None:
    found = parse_bytes(text)
    assert (found, type(found)) == (count, int)


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "1TB", "1e9", "1,5GB", "2GBs", "2 G B", "1.GB", ".5GB", "1iB", "nan", "inf", "0x10", "½GB"],
)
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RowRefused, match=r"is no size: write 2GB, 512MiB or a number of bytes") as refused:
        parse_bytes(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_a_gallery_and_made_where_there_is_none(tmp_path: Path, kind: type) -> None:
    where = tmp_path / "new" / "gallery"
    with open_index(kind(where), DIGEST, 8) as index:
        assert isinstance(index, Gallery)
        assert (index.model_digest, index.dimension, index.count) == (DIGEST, 8, 0)
        index.add(["a"], np.ones((1, 8)), ["cat"])
    assert (where / "gallery.sqlite").exists()
    with open_index(kind(where), DIGEST, 8) as index:
        assert index.count == 1


def test_memory_and_factory_choose_how_a_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []
    original = Gallery.open.__func__

    def opened(cls: type[Gallery], *arguments: object, **options: object) -> Gallery:
        given.append(options)
        return original(cls, *arguments, **options)

    monkeypatch.setattr(Gallery, "open", classmethod(opened))
    open_index(tmp_path, DIGEST, 8, ram=10**6, factory="SQ8").close()
    assert given == [{"ram": 10**6, "factory": "SQ8"}]
    with pytest.raises(RowRefused, match="factory 'best' is none of"):
        open_index(tmp_path, DIGEST, 8, factory="best")


def test_without_the_milvus_package_a_folder_opens_and_an_address_says_what_to_install(tmp_path: Path) -> None:
    code = """if True:
        import sys
        sys.modules["pymilvus"] = None  # as where it is not installed
        from index.errors import GalleryError
        from index.open import open_index
        with open_index(sys.argv[1], "a" * 64, 8) as index:
            print(index.count)
        try:
            open_index("milvus://127.0.0.1:1", "a" * 64, 8)
        except GalleryError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == ("0\nmilvus://127.0.0.1:1 needs pymilvus, which is not installed: run make setup-milvus\n")
