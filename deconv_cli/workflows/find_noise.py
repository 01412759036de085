"""What kind of noise data have, as the settings say or as the data show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from deconv_cli.diagnostics.continuation import affordable_window
from deconv_cli.diagnostics.noise_spectrum import fit_noise_spectrum
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators.axes import crop
from deconv_cli.settings import ResolvedSettings


def find_noise(y: Tensor, kernel: Kernel, settings: ResolvedSettings) -> NoiseModel:
    """Find what kind of noise data have.

    Args:
        y: shape `(C_out, *size)` or `(B, C_out, *size)`, without the bias.
        kernel: what made them.
        settings: what was resolved.

    Raises:
        UsageError: there is a model for each channel of others than these.
    """
    found = settings.noise
    if isinstance(found, tuple):
        if len(found) > 1:
            raise UsageError(
                f"noise was given for {len(found)} channels, but these data are restored as a whole; give one model."
            )
        found = found[0]
    if found == "auto":
        found = fit_noise_spectrum(_middle(y, kernel), kernel.taps)
    model = found if isinstance(found, NoiseModel) else NoiseModel()
    return model if settings.noise_sigma is None else replace(model, sigma=settings.noise_sigma, is_sigma_given=True)


def find_noise_of_channels(y: Tensor, kernels: Sequence[Kernel]) -> tuple[NoiseModel, ...]:
    """Find what kind of noise each channel of a picture has: colored in all of them where it is so in one.

    What compresses or smooths a picture does so to all channels, but the spectrum of one alone may not show it.

    Args:
        y: shape `(C, *size)` or `(B, C, *size)`, of the kernels' precision.
        kernels: of one channel each, as many as channels or one for all.
    """
    axis = kernels[0].channel_axis
    pieces = [
        (_middle(y.narrow(axis, c, 1), kernels[c % len(kernels)]), kernels[c % len(kernels)].taps)
        for c in range(y.shape[axis])
    ]
    found = [fit_noise_spectrum(*piece) for piece in pieces]
    if all(model.is_white for model in found):
        return tuple(found)
    return tuple(
        fit_noise_spectrum(*piece, is_colored=True) if model.is_white else model
        for model, piece in zip(found, pieces, strict=True)
    )


def _middle(y: Tensor, kernel: Kernel) -> Tensor:
    """Cut as much as is affordable out of the middle of data, arranged for the kernel: `(n, C_out, *window)`."""
    outputs = kernel.split(y.detach(), are_outputs=True)
    outputs = outputs.reshape(-1, *outputs.shape[kernel.channel_axis :])
    window = affordable_window(tuple(outputs.shape[2:]))
    start = tuple((n - kept) // 2 for n, kept in zip(outputs.shape[2:], window, strict=True))
    return crop(outputs, start, window)
