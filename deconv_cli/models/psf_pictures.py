"""Reading the picture of a point-spread function."""

from __future__ import annotations

from pathlib import Path

import torch

from deconv_cli.errors import ShapeError
from deconv_cli.io.image import read_image


def read_psf_picture(path: Path) -> torch.Tensor:
    """Read a picture of one plane.

    Returns:
        The samples as stored, shape `(kH, kW)`, or `(C, kH, kW)` where the channels differ.

    Raises:
        ShapeError: a stack.
        InputRefusedError: damaged, too large or not finite.
    """
    image = read_image(path)
    if len(image.values) != 1:
        raise ShapeError(
            f"kernel '{path}' should be one plane, but is a stack of shape {image.shape}; give one for each "
            "channel as channels of one picture, as an array (C, kH, kW), or as files of their own."
        )
    channels: torch.Tensor = image.values[0]
    return channels[0] if bool((channels == channels[0]).all()) else channels
