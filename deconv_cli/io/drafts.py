"""An array that is ready to be written, with all that goes along with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deconv_cli.io.contents import Metadata


@dataclass(frozen=True, eq=False)
class Draft:
    """What a writer gets."""

    array: npt.NDArray[np.generic]
    """In the order of `axes`, the alpha sample included."""
    axes: str
    metadata: Metadata
    alpha: str | None
    """`unassociated` or `associated` where the last sample of axis S is alpha."""
    same_channels: bool
    """True where the channels are those of the source."""

    @property
    def n_colors(self) -> int:
        """Samples of axis S without alpha; 0 without such an axis."""
        if "S" not in self.axes:
            return 0
        return int(self.array.shape[self.axes.index("S")]) - int(self.alpha is not None)


def all_texts(metadata: Metadata) -> dict[str, str]:
    """Give every text of a picture by keyword, a JPEG comment among them."""
    if metadata.comment is None:
        return metadata.texts
    return {"Comment": metadata.comment.decode("utf-8", "replace"), **metadata.texts}
