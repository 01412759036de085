"""What of a restoration is shown as pictures, under which scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from deconv_cli.report.pictures import Plane, display_range

if TYPE_CHECKING:
    from deconv_cli.report.page import ReportContents


def pick_planes(contents: ReportContents) -> tuple[list[Plane], str | None]:
    """Pick what is shown of each tensor, and say so where it is not all."""
    unit = f"in units of the {contents.record['inputs'][0]['dtype']} samples"
    planes = [*_images(contents, unit), _residual_plane(contents, unit), *_errors(contents, unit)]
    return planes, _selection(contents)


def _images(contents: ReportContents, unit: str) -> list[Plane]:
    """Show what came, what was made of it, and what it should be."""
    data, estimate = _seen(contents.data, contents), _seen(contents.estimate, contents)
    truth = None if contents.truth is None else _seen(contents.truth, contents)
    of_images = [image for image in (estimate, truth) if image is not None]
    # A photograph and its restoration are of one kind; what a layer gives is not of the kind that it takes.
    low, high = display_range(*of_images, *([data] if contents.is_picture else []))
    of_data = (low, high) if contents.is_picture else display_range(data)
    together = "" if truth is None else ", as the truth has"
    scale = f"The estimate has the same scale{together}." if contents.is_picture else "It has a scale of its own."
    predicted = contents.predicted_error
    mask = None if predicted is None else ~predicted.trusted.detach().cpu()
    text = "What was restored." if mask is None else "What was restored; hatched where it is not to be trusted."
    planes = [
        Plane("Input", data, *of_data, f"As it came. {scale}", unit),
        Plane("Estimate", estimate, low, high, text, unit, mask=mask),
    ]
    return planes if truth is None else [*planes, Plane("Truth", truth, low, high, "What was to be found.", unit)]


def _errors(contents: ReportContents, unit: str) -> list[Plane]:
    """Show the error to be expected and the error there is, on one scale."""
    errors = []
    if contents.predicted_error is not None:
        size = _root_mean_square(_first(contents.predicted_error.map))
        errors.append(("Predicted error", size, "The error to be expected, root mean square."))
    if contents.truth is not None:
        difference = _first(contents.estimate) - _first(contents.truth)
        errors.append(("Actual error", _root_mean_square(difference), "Estimate less truth, by size."))
    top = max((display_range(values)[1] for _, values, _ in errors), default=1.0)
    return [Plane(name, values, 0.0, top, text, unit, "viridis") for name, values, text in errors]


def _residual_plane(contents: ReportContents, unit: str) -> Plane:
    residual = _first(contents.diagnosis.residual)
    name, text = "Residual", "Input less what the kernel makes of the estimate"
    if residual.shape[0] == 1:
        values = residual[0]
        low, high = display_range(values)
        limit = max(-low, high)
        return Plane(name, values, -limit, limit, f"{text}.", unit, "cividis")
    values = _root_mean_square(residual)
    return Plane(name, values, 0.0, display_range(values)[1], f"{text}, over all channels.", unit, "cividis")


def _first(image: Tensor) -> Tensor:
    """Take the first image of a batch, shape `(C, H, W)`."""
    whole = image.detach().cpu()
    return whole if whole.ndim == 3 else whole[0]


def _root_mean_square(image: Tensor) -> Tensor:
    return image.double().square().mean(dim=0).sqrt()


def _seen(image: Tensor, contents: ReportContents) -> Tensor:
    """Take colors where there are some, else the first channel of the first image."""
    first = _first(image)
    return first if contents.is_picture and first.shape[0] == 3 else first[0]


def _selection(contents: ReportContents) -> str | None:
    n_images = contents.data.shape[0] if contents.data.ndim == 4 else 1
    counts = {contents.data.shape[-3], contents.estimate.shape[-3]}
    parts = [f"the first of {n_images} images"] if n_images > 1 else []
    if not (counts == {1} or (counts == {3} and contents.is_picture)):
        parts.append("the first channel of each image")
    return f"Shown: {', '.join(parts)}." if parts else None
