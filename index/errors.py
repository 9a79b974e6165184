"""What can go wrong with an index. Every message names the value, the limit and the way out."""

from typing import ClassVar


class GalleryError(Exception):
    """Any failure of an index; the subclasses say which. `status` is the HTTP status that it means."""

    status: ClassVar[int] = 500


class RowRefused(GalleryError, ValueError):
    """A row or query that must not enter: wrong dimension, NaN, Inf, zero, a bad id, label, metadata or filter."""

    status = 400


class NotThere(GalleryError, KeyError):
    """No row has this id."""

    status = 404

    def __str__(self) -> str:  # KeyError would quote it
        return str(self.args[0])


class WrongModel(GalleryError):
    """The index holds vectors of another model, or of another dimension."""

    status = 409


class GalleryCorrupt(GalleryError):
    """The file on disk is damaged or is not a gallery; nothing from it is served."""


class GalleryBusy(GalleryError):
    """Another process held the write lock for longer than we were willing to wait."""

    status = 503


class GalleryFull(GalleryError):
    """The disk did not take a write. What was there before still is."""

    status = 507


class GalleryReadOnly(GalleryError):
    """A write to a folder that this process may only read."""

    status = 403


class GalleryAway(GalleryError):
    """The server that holds the index does not answer."""

    status = 503


class SeedCorrupt(GalleryError):
    """The seed that ships in model_store is missing or is not the one its manifest describes."""
