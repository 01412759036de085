"""Channels that do not mix, inverted one by one: each with a kernel, a λ or a noise of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.workflows.apply_kernel import as_bias
from deconv_cli.workflows.arithmetic import as_any_kernel, pick_dtype
from deconv_cli.workflows.channels import join_channels
from deconv_cli.workflows.diagnose import Diagnosis, join_diagnoses
from deconv_cli.workflows.find_noise import fill_clipped, find_noise_of_channels
from deconv_cli.workflows.inversion import Inversion, Measure, Steps, check_truth, find_bounds
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import Resolution


class ChannelInversions:
    """Inverts one channel after another; their inverses are kept at once, and share the memory.

    Args:
        kernel: the taps for all channels alike, or for each.
        bias: subtracted from each channel first, shape `(C_out,)`.
    """

    def __init__(self, kernel: Tensor | KernelField, bias: Tensor | None) -> None:
        self._kernel, self._bias = kernel, bias
        self._inversions: list[Inversion] = []
        self._adding = threading.Lock()

    def begin(
        self,
        y: Tensor,
        kernel: Kernel,
        resolution: Resolution,
        steps: Steps,
        truth: Tensor | None,
        listener: ProgressListener,
    ) -> Measure:
        """Estimate all channels, as `Inversion.begin` does one, with the kernel in canonical form beside."""
        kernels = [self._kernel]
        if resolution.is_per_channel:
            kernel = replace(kernel, is_per_channel=True)
            kernels = list(kernel.taps[:, 0])
        self._check_channels(y, kernel, resolution, truth)
        axis, settings = kernel.channel_axis, resolution.settings
        n_channels = y.shape[axis]
        # Kept where a picture in gray comes between those in colors.
        biases = [None] * n_channels if self._bias is None else list(self._bias.split(1))
        with self._adding:
            self._inversions += [
                Inversion(kernels[c % len(kernels)], kernel.n_axes, bias=biases[c])
                for c in range(len(self._inversions), n_channels)
            ]
        if settings.max_memory is not None:
            settings = replace(settings, max_memory=max(settings.max_memory // n_channels, 1))
        noises = settings.noise
        if noises == "auto":
            dtype = pick_dtype(settings.dtype, y, y.device)
            own_kernels = [as_any_kernel(taps, y.device, dtype, kernel.n_axes) for taps in kernels]
            filled, shares = zip(
                *(
                    fill_clipped(channel, single, settings, find_bounds(channel, single, resolution))
                    for channel, single in zip(y.to(dtype).split(1, axis), cycle(own_kernels), strict=False)
                ),
                strict=True,
            )
            noises = find_noise_of_channels(filled, own_kernels, shares)
        parts = []
        for c, inversion in enumerate(self._inversions[:n_channels]):
            lam = resolution.lams[c] if resolution.lams else settings.lam
            noise = noises[c % len(noises)] if isinstance(noises, tuple) else noises
            alone = replace(
                resolution, settings=replace(settings, lam=lam, noise=noise), lams=(), is_per_channel=False, notes=()
            )
            known = None if truth is None else truth.narrow(axis, c, 1)
            parts.append(inversion.begin(y.narrow(axis, c, 1), alone, (steps[c % len(steps)],), known, listener))
        return lambda: join_channels([measure() for measure in parts], resolution, kernel.n_axes)

    def diagnose(self, parts: Sequence[Reconstruction], y: Tensor, n_axes: int) -> Diagnosis:
        """Examine what was estimated last, channel by channel."""
        one_by_one = zip(self._inversions[: len(parts)], parts, y.split(1, dim=-n_axes - 1), strict=True)
        return join_diagnoses([inversion.diagnose(part, data) for inversion, part, data in one_by_one], n_axes)

    def _check_channels(self, y: Tensor, kernel: Kernel, resolution: Resolution, truth: Tensor | None) -> None:
        """Refuse a kernel, λ, bias or truth that is not there for each channel."""
        if kernel.is_per_channel:
            kernel.check_channels(y)
        else:
            kernel.split(y)
        n_lams, n_channels = len(resolution.lams), y.shape[kernel.channel_axis]
        if n_lams not in (0, n_channels):
            raise UsageError(
                f"λ was given for {n_lams} channels, but the image of shape {tuple(y.shape)} has {n_channels}; give "
                "one for each, or a single one."
            )
        if self._bias is not None:
            as_bias(self._bias, y, kernel.n_axes)
        if truth is not None:
            size = tuple(y.shape[-kernel.n_axes :])
            settings = resolution.settings
            geometry = kernel.geometry_of_output(size, settings.padding, settings.input_size)
            check_truth(truth, tuple(y.shape[: -kernel.n_axes]), geometry.image_size)
