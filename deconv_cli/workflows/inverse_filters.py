"""Banks of filters that undo a blur by plain convolution, learned from pairs, and judged where nothing was learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deconv_cli.argument_types import check_type
from deconv_cli.errors import ShapeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.axes import crop
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.vocabulary import Size, format_size
from deconv_cli.workflows.apply_kernel import forward
from deconv_cli.workflows.arithmetic import as_any_kernel, check_kernel
from deconv_cli.workflows.image_pairs import as_pairs, checked_size, group_pairs
from deconv_cli.workflows.learn_kernel import KernelLearning, learn_kernel
from deconv_cli.workflows.learning_settings import LearningSettings
from deconv_cli.workflows.library import invert
from deconv_cli.workflows.noise import Noise
from deconv_cli.workflows.progress_listener import ProgressListener


@dataclass(frozen=True)
class HeldOutQuality:
    """Peak signal-to-noise ratios in dB, where outputs were held out; the peak is the largest sharp sample.

    Attributes:
        learned: of what the filters give that were learned without these outputs.
        blurred: of the blurred images as they came.
        tikhonov: of `invert` with λ chosen from the data; `None` where no kernel is known.
    """

    learned: float
    blurred: float | None
    tikhonov: float | None


@dataclass(frozen=True, eq=False)
class InverseFilters:
    """A bank of filters, and how well it does.

    Attributes:
        learning: `taps` of shape `(*k)`, `(C, *k)` or `(C_in, C_out, *k)` turn blurred images, of C_out channels, into
            sharp ones, of C_in: `forward(blurred, taps)`.
        quality: where outputs were held out; `None` where there are too few.
    """

    learning: KernelLearning
    quality: HeldOutQuality | None


def learn_inverse_filters(
    pairs: Sequence[tuple[Tensor, Tensor]],
    size: Size,
    *,
    kernel: Tensor | None = None,
    settings: LearningSettings | None = None,
    progress: ProgressListener | None = None,
    resume: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _state: None,
    **choices: Any,  # noqa: ANN401
) -> InverseFilters:
    """Learn filters that turn blurred images into sharp ones by plain convolution.

    Args:
        pairs: sharp and blurred images, in this order, each of shape `(C, *size)` or `(B, C, *size)`, of one size.
        size: of the filters: one number for each axis of space.
        kernel: what blurred the images, where it is known; Tikhonov's estimate by it is held against theirs.
        settings: as of `learn_kernel`, and likewise the rest.
        progress: is notified of every epoch and round.
        resume: a state that `keep` was given.
        keep: is given the state after every epoch and round.
        choices: fields of `LearningSettings`.

    Raises:
        ShapeError: images of different sizes, or a kernel that does not fit them.
        DeconvError: what `learn_kernel` refuses.
    """
    settings = LearningSettings.of(settings, **choices)
    size, pairs = checked_size(size), as_pairs(pairs)
    n_axes = len(size)
    for sharp, blurred in pairs:
        if sharp.shape[-n_axes:] != blurred.shape[-n_axes:]:
            raise ShapeError(
                "inverse filters keep the size of an image, but the sharp one is of "
                f"{format_size(sharp.shape[-n_axes:])} and the blurred one of {format_size(blurred.shape[-n_axes:])}; "
                "crop one to the other."
            )
    swapped = [(blurred, sharp) for sharp, blurred in pairs]
    learning = learn_kernel(swapped, size, settings=settings, progress=progress, resume=resume, keep=keep)
    if math.isnan(learning.held_out):
        return InverseFilters(learning, None)
    if progress is not None:
        progress.begin("comparing with Tikhonov's estimate")
    return InverseFilters(learning, _judge(swapped, size, learning, settings, kernel))


def simulate_pairs(
    images: Sequence[Tensor], kernel: Tensor, *, noise: str | None = None, seed: int = 0, n_axes: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Blur sharp images where nothing has to be assumed of what lies outside of them, and add noise.

    Args:
        images: each of shape `(C, *size)` or `(B, C, *size)`.
        kernel: the taps, as for `forward`.
        noise: `gaussian:SIGMA` or `poisson:PEAK`; `None` for none.
        seed: of the noise; that of each next image is one more.
        n_axes: axes of space, where those of the kernel do not tell.

    Returns:
        Sharp and blurred images of one size, both less by the kernel less one, float64.

    Raises:
        DeconvError: what `forward` refuses, or noise of another kind.
    """
    check_type(images, Iterable, "what is to be blurred")
    check_kernel(kernel)
    model = None if noise is None else Noise.parse(noise)
    if model is not None:
        kernel, _ = model.kernel_for(kernel, as_any_kernel(kernel, kernel.device, torch.float64, n_axes).n_axes)
    pairs = []
    for number, image in enumerate(images):
        blurred = forward(image, kernel, padding="valid", dimensions=n_axes, dtype="float64")
        if model is not None:
            blurred = model.add(blurred, seed + number)
        known = as_any_kernel(kernel, image.device, blurred.dtype, n_axes)
        before = tuple((n - 1) // 2 for n in known.size)
        pairs.append((crop(image.double(), before, tuple(blurred.shape[-known.n_axes :])), blurred))
    return pairs


def channels_of(kernel: Kernel) -> str:
    """Give how the inverse filters of a kernel go through the channels: as the kernel does."""
    return "shared" if kernel.shared else "each" if kernel.is_per_channel else "mix"


def _judge(
    swapped: Sequence[tuple[Tensor, Tensor]],
    size: Size,
    learning: KernelLearning,
    settings: LearningSettings,
    kernel: Tensor | None,
) -> HeldOutQuality:
    """Compare estimates with the sharp images, where outputs were held out."""
    n_axes, rule = len(size), as_rule(settings.boundary)
    peak = max(float(sharp.max()) for _, sharp in swapped)

    def held_out(blurred: Tensor, image: Tensor) -> list[Tensor]:
        ((*found,),) = group_pairs([(blurred, image)], size, "mix", rule)
        return [part.y for pair in found for part, is_held in pair.stripes(size) if is_held]

    def psnr(estimates: Sequence[Tensor]) -> float:
        square = count = 0.0
        for (blurred, sharp), estimate in zip(swapped, estimates, strict=True):
            for wanted, found in zip(held_out(blurred, sharp), held_out(blurred, estimate), strict=True):
                square += float((wanted - found).square().sum())
                count += wanted.numel()
        return 10 * math.log10(peak**2 * count / max(square, 1e-300))

    blurred_images = [blurred for blurred, _ in swapped]
    around = "zero" if rule.is_unknown else settings.boundary  # where nothing is known, the rim is not looked at
    learned = [forward(y, learning.held_out_taps, boundary=around, dimensions=n_axes) for y in blurred_images]
    inverted = None
    if kernel is not None:
        inverted = [
            invert(y, kernel, boundary="unknown", penalty="gradient", lam="auto", dimensions=n_axes).image
            for y in blurred_images
        ]
    is_same = all(y.shape == sharp.shape for y, sharp in swapped)
    return HeldOutQuality(
        learned=psnr(learned),
        blurred=psnr(blurred_images) if is_same else None,
        tikhonov=None if inverted is None else psnr(inverted),
    )
