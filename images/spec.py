"""PreprocessSpec: how any image becomes the pixels the encoder was trained on, as data.

Export writes it into the manifest and whoever decodes reads it there, so evaluation, calibration,
index and server get byte-equal pixels. Only `size` is free. The other fields name what `images.decode`
does: they have one supported value each, so that a manifest from a different akin is refused
instead of being served with subtly different pixels.
"""

from dataclasses import asdict, dataclass, fields

MAX_SIZE = 1024


@dataclass(frozen=True)
class PreprocessSpec:
    """The steps from bytes to a (size, size, 3) uint8 array, in the order they are taken."""

    size: int = 96  # pixels a side of the square the encoder sees
    jpeg_scaling: str = "DCT, shorter side at least 2 x size"
    sixteen_bit: str = "high byte"
    background: str = "white"  # what shows through transparent pixels
    color: str = "RGB"
    crop: str = "center"  # the largest centred square
    resize: str = "shorter side, antialiased bilinear"
    orientation: str = "EXIF"

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"preprocess size {self.size!r} is not a whole number from 1 to {MAX_SIZE}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "size" and value != field.default:
                raise ValueError(
                    f"preprocess {field.name} {value!r} is not supported, only {field.default!r}; "
                    "export the model again with this version of akin"
                )

    def to_json(self) -> dict[str, int | str]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, int | str]) -> "PreprocessSpec":
        """The spec of a manifest; every field must be there, and none that we do not know."""
        known = {field.name for field in fields(cls)}
        if values.keys() != known:
            missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known)
            raise ValueError(
                f"preprocess fields do not match: missing {missing}, unknown {unknown}; "
                "export the model again with this version of akin"
            )
        return cls(**values)  # type: ignore[arg-type]  # values are checked in __post_init__
