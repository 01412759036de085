"""What to know of a kernel that was read, a sentence each, and what its taps add up to."""

from __future__ import annotations

from typing import Any

import torch

from deconv_cli.models.layers import Layer
from deconv_cli.vocabulary import Convention

UNIT_SUM = 0.01
"""A sum of taps this close to 1 is one."""


def geometry_notes(geometry: dict[str, Any]) -> tuple[str, ...]:
    """Say what a file says of its layer: `stride 2,2, padding 3,3, ...`."""
    if not geometry:
        return ()
    texts = (
        f"{name} {','.join(map(str, value)) if isinstance(value, list) else value}" for name, value in geometry.items()
    )
    return (f"the layer itself says: {', '.join(texts)}; that is taken where nothing else is given",)


def space_axes(n_axes: int) -> tuple[int, ...]:
    """List the axes of space, counted from the end: `(-2, -1)` for two."""
    return tuple(range(-n_axes, 0))


def is_layer(taps: torch.Tensor, n_axes: int) -> bool:
    """Tell whether channels are mixed, or made."""
    return taps.ndim == n_axes + 2 and taps.shape[1] > 1


def sums_of_taps(taps: torch.Tensor, n_axes: int) -> torch.Tensor:
    """Add up the taps of each channel, or of each output channel, with axes to divide by: shape `(C, 1, ...)`."""
    axes = tuple(range(1, taps.ndim)) if taps.ndim == n_axes + 2 else space_axes(n_axes)
    return taps.to(torch.float64).sum(dim=axes, keepdim=True)


def channel_notes(taps: torch.Tensor, n_axes: int) -> tuple[str, ...]:
    """Say that each channel has a kernel of its own, if so."""
    if taps.ndim != n_axes + 1:
        return ()
    return (f"there is a kernel for each of {len(taps)} channels, and each channel is taken by itself",)


def orientation_notes(taps: torch.Tensor, held: Convention, n_axes: int) -> tuple[str, ...]:
    """Warn of an array that is not flipped, if that matters and nobody said so."""
    wide = taps.to(torch.float64)
    is_symmetric = bool((wide - wide.flip(space_axes(n_axes))).abs().max() <= 1e-3 * wide.abs().max())
    if held is Convention.CONVOLUTION or is_layer(taps, n_axes) or is_symmetric:
        return ()
    return (
        f"the kernel is not symmetric, and its array was taken for the taps of a cross-correlation, as conv{n_axes}d "
        'applies them; if it holds a point-spread function as a camera sees it, choose convention="convolution"; '
        'convention="correlation" confirms this one',
    )


def sum_notes(taps: torch.Tensor, n_axes: int) -> tuple[str, ...]:
    """Say that the taps were not divided by their sum, where that changes the brightness."""
    sums = sums_of_taps(taps, n_axes).flatten()
    if is_layer(taps, n_axes) or bool(((sums - 1).abs() <= UNIT_SUM).all()):
        return ()
    return (
        f"the taps of the kernel add up to {listed(sums)} and were taken as they are, so that an estimate has the "
        "brightness of the data divided by that; normalize=True divides the taps by their sum",
    )


def listed(sums: torch.Tensor) -> str:
    """Write sums of taps, eight at most."""
    first = ", ".join(f"{float(value):g}" for value in sums.flatten()[:8])
    return f"{first}{', ...' if sums.numel() > 8 else ''}"


def bias_notes(layer: Layer, is_taken: bool) -> tuple[str, ...]:
    """Say what became of the bias, if there is one."""
    if layer.bias is None:
        return ()
    if not is_taken:
        return (f"the bias '{layer.bias_name}' was left out",)
    return (
        f"the bias '{layer.bias_name}' of {layer.bias.numel()} numbers was read too and is subtracted from outputs "
        "before they are inverted, or added in the forward direction",
    )
