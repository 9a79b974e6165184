"""The one rule for vectors that enter a gallery or ask it something: checked, then scaled to unit length."""

from collections.abc import Sequence

import numpy as np

from index.errors import RowRefused


def unit_rows(vectors: np.ndarray, dimension: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Return `vectors` as (N, dimension) float32 of unit length, or refuse them all.

    vectors: (N, dimension), any real dtype. names: what to call each row in an error, besides its number.

    Cosine similarity gives length no meaning, so any non-zero length is accepted and removed. That also
    repairs vectors that were stored as float16.
    """
    wide = np.asarray(vectors)
    if wide.ndim != 2 or wide.shape[1] != dimension:
        raise RowRefused(f"vectors of shape {wide.shape} do not fit: send (N, {dimension})")
    if wide.dtype.kind not in "fiu":
        raise RowRefused(f"vectors of type {wide.dtype} are not real numbers: send float32")
    # float64: the squares of a large but finite float32 overflow float32.
    wide = wide.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):  # refused below
        lengths = np.sqrt(np.vecdot(wide, wide))
    if len(wide) and not (lengths.min() > 0 and lengths.max() < np.inf):  # NaN compares as neither
        usable = np.isfinite(lengths) & (lengths > 0)
        row = int(np.argmin(usable))
        name = f" (id {names[row]!r})" if names is not None else ""
        raise RowRefused(f"vector {row}{name} {_fault(wide[row])}: leave it out; nothing was done")
    return (wide / lengths[:, None]).astype(np.float32)


def _fault(vector: np.ndarray) -> str:
    if np.isnan(vector).any():
        return f"has NaN at position {int(np.argmax(np.isnan(vector)))}"
    if np.isinf(vector).any():
        return f"has Inf at position {int(np.argmax(np.isinf(vector)))}"
    if vector.any():
        return "is too long or too short to be scaled to unit length"
    return "is zero and has no direction"
