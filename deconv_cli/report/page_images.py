"""Which images of a reconstruction a page shows, and on which scale."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from deconv_cli.report.page_pictures import ScaledImage, display_range
from deconv_cli.report.run import InvertRun
from deconv_cli.workflows.diagnose import Diagnosis

N_CHANNELS = 3
"""Channels of an image that is no color picture that are shown."""


def images_to_show(
    run: InvertRun, diagnosis: Diagnosis, data: Tensor, truth: Tensor | None
) -> tuple[list[ScaledImage], str | None]:
    """Choose the images of a page, for data of shape `(C_out, *size)` or `(B, C_out, *size)`.

    Returns:
        The images, which are stacks where the kernel spans three axes, and a sentence on what is left out; `None` where
        nothing is.
    """
    unit = f"in units of the {run.source.dtype} samples"
    estimate = run.reconstruction.image
    curve = run.reconstruction.tone_curve
    of_light = unit if curve is None else f"in units of {run.reconstruction.unit}"
    errors = _errors(run, truth, of_light)
    images = [*_pictures(run, data, truth, unit), _residual(diagnosis, of_light, run.kernel.kernel.n_axes), *errors]
    return images, _omission(run, data, estimate)


def _pictures(run: InvertRun, data: Tensor, truth: Tensor | None, unit: str) -> list[ScaledImage]:
    """Show the data, the estimate, and the truth."""
    is_picture, predicted = run.source.is_picture, run.reconstruction.predicted_error
    inputs, estimates = _channels(run, data), _channels(run, run.reconstruction.image)
    truths = [] if truth is None else _channels(run, truth)
    # A photograph and its restoration are of one kind; what a layer gives is not of the kind that it takes.
    low, high = display_range(*estimates, *truths, *(inputs if is_picture else []))
    if is_picture and np.issubdtype(run.source.dtype, np.integer):
        low, high = _within_limits(low, high, np.iinfo(run.source.dtype))
    of_data = (low, high) if is_picture else display_range(*inputs)
    together = "" if truth is None else ", as the truth has"
    scale = f"The estimate has the same scale{together}." if is_picture else "It has a scale of its own."
    mask = None if predicted is None else ~predicted.trusted.detach().cpu()
    text = "What was restored." if mask is None else "What was restored; hatched where it is not to be trusted."
    return [
        *(ScaledImage(name, x, *of_data, f"As it came. {scale}", unit) for name, x in _named("Input", inputs)),
        *(ScaledImage(name, x, low, high, text, unit, mask=mask) for name, x in _named("Estimate", estimates)),
        *(ScaledImage(name, x, low, high, "What was to be found.", unit) for name, x in _named("Truth", truths)),
    ]


def _within_limits(low: float, high: float, limits: np.iinfo) -> tuple[float, float]:
    """Narrow a range: what overshoots that of the samples is neither darker than black nor lighter than white."""
    darkest, lightest = float(limits.min), float(limits.max)
    low, high = max(low, darkest), min(high, lightest)
    return (low, high) if low < high else (darkest, lightest)


def _errors(run: InvertRun, truth: Tensor | None, unit: str) -> list[ScaledImage]:
    """Show the predicted error and the actual one, on one scale."""
    errors, n_axes = [], run.kernel.kernel.n_axes
    if run.reconstruction.predicted_error is not None:
        size = _root_mean_square(_first(run.reconstruction.predicted_error.map, n_axes))
        errors.append(("Predicted error", size, "The error to be expected, root mean square."))
    if truth is not None:
        image, curve = _first(run.reconstruction.image, n_axes), run.reconstruction.tone_curve
        true_image = _first(truth, n_axes).to(image)
        if curve is not None:
            image, true_image = curve.to_light(image), curve.to_light(true_image)
        difference = image - true_image
        errors.append(("Actual error", _root_mean_square(difference), "Estimate less truth, by size."))
    top = max((display_range(values)[1] for _, values, _ in errors), default=1.0)
    return [ScaledImage(name, values, 0.0, top, text, unit, "viridis") for name, values, text in errors]


def _residual(diagnosis: Diagnosis, unit: str, n_axes: int) -> ScaledImage:
    residual = _first(diagnosis.residual, n_axes)
    name, text = "Residual", "Input less what the kernel makes of the estimate"
    if residual.shape[0] == 1:
        low, high = display_range(residual[0])
        limit = max(-low, high)
        return ScaledImage(name, residual[0], -limit, limit, f"{text}.", unit, "cividis")
    values = _root_mean_square(residual)
    return ScaledImage(name, values, 0.0, display_range(values)[1], f"{text}, over all channels.", unit, "cividis")


def _first(images: Tensor, n_axes: int) -> Tensor:
    """Take the first image of a batch, shape `(C, *size)`."""
    whole = images.detach().cpu()
    return whole if whole.ndim == n_axes + 1 else whole[0]


def _root_mean_square(image: Tensor) -> Tensor:
    return image.double().square().mean(dim=0).sqrt()


def _channels(run: InvertRun, images: Tensor) -> list[Tensor]:
    """Take the colors of the first image where it has some, else its first channels one by one."""
    first = _first(images, run.kernel.kernel.n_axes)
    return [first] if run.source.is_picture and first.shape[0] == 3 else list(first[:N_CHANNELS])


def _named(name: str, channels: list[Tensor]) -> list[tuple[str, Tensor]]:
    if len(channels) == 1:
        return [(name, channels[0])]
    return [(f"{name}, channel {number}", values) for number, values in enumerate(channels, start=1)]


def _omission(run: InvertRun, data: Tensor, estimate: Tensor) -> str | None:
    channels, is_picture = run.kernel.kernel.channel_axis, run.source.is_picture
    n_images = data.shape[0] if data.ndim > -channels else 1
    counts = {data.shape[channels], estimate.shape[channels]}
    parts = [f"the first of {n_images} images"] if n_images > 1 else []
    if max(counts) > N_CHANNELS and not (is_picture and counts == {3}):
        parts.append(f"the first {N_CHANNELS} of {max(counts)} channels")
    return f"Shown: {', '.join(parts)}." if parts else None
