"""What a folder holds that can be read one by one: single files, archives, and data sets of many files."""

import os
from pathlib import Path, PurePosixPath

from images import cifar10, stl10

DATA_SETS = (stl10, cifar10)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".parquet", ".npy")
PACKED = {  # as torchvision leaves them beside the folders that it has unpacked from them
    "stl10_binary.tar.gz": "stl10_binary",
    "cifar-10-binary.tar.gz": "cifar-10-batches-bin",
    "cifar-10-python.tar.gz": "cifar-10-batches-py",
}


def parts(path: Path) -> list[Path]:
    """Files, archives, and the folders of STL-10 and CIFAR-10 as a whole, sorted by their paths below `path`. What is
    no folder, or is such a data set itself, is its own only part. Names with a leading dot are left out."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for name, folders, files in os.walk(path):
        folder = Path(name)
        if any(data_set.find(folder) == folder for data_set in DATA_SETS):
            found.append(folder)
            folders.clear()  # not walked into
            continue
        folders[:] = [inner for inner in folders if not hidden(inner)]
        wanted = (file for file in files if not hidden(file) and PACKED.get(file) not in folders)
        found += [folder / file for file in wanted if (folder / file).is_file()]
    return sorted(found, key=lambda part: part.relative_to(path).as_posix())


def is_single(part: Path) -> bool:
    """Whether a part is one image, if it is any: neither an archive nor a data set."""
    return not part.name.lower().endswith(ARCHIVES) and not part.is_dir()


def hidden(name: str) -> bool:
    """Names such as .DS_Store, .git/ and ._photo.jpg, which are nobody's pictures."""
    return any(part.startswith(".") and part not in (".", "..") for part in PurePosixPath(name).parts)
