"""What can go wrong with a gallery. Every message names the value, the limit and the way out."""


class GalleryError(Exception):
    """Any failure of a gallery; the subclasses say which."""


class RowRefused(GalleryError, ValueError):
    """A row or query that must not enter: wrong dimension, NaN, Inf, zero, a bad id or label."""


class WrongModel(GalleryError):
    """The gallery holds vectors of another model, or of another dimension."""


class GalleryCorrupt(GalleryError):
    """The file on disk is damaged or is not a gallery; nothing from it is served."""


class GalleryBusy(GalleryError):
    """Another process held the write lock for longer than we were willing to wait."""


class SeedCorrupt(GalleryError):
    """The seed that ships in model_store is missing or is not the one its manifest describes."""
