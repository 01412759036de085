"""Reading the picture of a point-spread function."""

from __future__ import annotations

from pathlib import Path

import torch

from deconv_cli.errors import ShapeError
from deconv_cli.io.image import read_image


def read_psf_picture(path: Path) -> torch.Tensor:
    """Read a picture of one plane, gray or with equal channels.

    Returns:
        The samples as stored, shape `(kH, kW)`.

    Raises:
        ShapeError: a stack, or channels that differ.
        InputRefusedError: damaged, too large or not finite.
    """
    image = read_image(path)
    if len(image.values) != 1:
        raise ShapeError(f"kernel '{path}' should be one plane, but is a stack of shape {image.shape}.")
    first: torch.Tensor = image.values[0, 0]
    if not bool((image.values[0] == first).all()):
        raise ShapeError(
            f"kernel '{path}' of shape {image.shape} should be gray or have equal channels, but they differ; save "
            "one channel, or the kernel of each as a tensor (C_out, C_in, kH, kW)."
        )
    return first
