"""A finished restoration as one page that carries everything inside, and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconv_cli.report.drawing import Plot
from deconv_cli.report.optional_parts import LambdaChoice, PredictedError
from deconv_cli.report.pictures import Plane, display_range, draw_pictures
from deconv_cli.report.plots import border_plot, correlation_plot, gain_plot, histogram_plot, lambda_plot, picard_plot
from deconv_cli.report.record import Record
from deconv_cli.report.story import tell
from deconv_cli.report.table import facts, flatten
from deconv_cli.workflows.diagnose import Diagnosis

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, eq=False)
class ReportContents:
    """What a page is made of.

    Attributes:
        record: the JSON record of the run.
        data: y, shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`.
        estimate: x̂, shape `(C_in, H, W)` or `(B, C_in, H, W)`.
        diagnosis: what was found out about it.
        is_picture: three channels are red, green and blue.
        lambda_choice: how λ was chosen, where it was not given.
        predicted_error: the error to be expected.
        truth: the image that was to be found, of the shape of the estimate.
    """

    record: Record
    data: Tensor
    estimate: Tensor
    diagnosis: Diagnosis
    is_picture: bool
    lambda_choice: LambdaChoice | None = None
    predicted_error: PredictedError | None = None
    truth: Tensor | None = None


def render_page(contents: ReportContents) -> str:
    """Write the page as HTML.

    File names, metadata and messages are other people's text: everything is escaped, no script but the page's own runs,
    and nothing is fetched from anywhere.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script, sheet = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    record = contents.record
    planes, shown = _planes(contents)
    pictures, side = draw_pictures(planes)
    longest = max(max(plane.values.shape[-2:]) for plane in planes)
    return environment.get_template("page.html").render(
        title=Path(record["inputs"][0]["path"]).name,
        story=tell(record, contents.diagnosis, contents.lambda_choice, contents.predicted_error),
        pictures=pictures,
        shown=shown,
        is_smaller=longest > side,
        longest=longest,
        side=side,
        plots=_plots(contents),
        facts=facts(record, contents.diagnosis),
        numbers=flatten(record),
        notes=record["notes"],
        rerun=record["rerun"],
        versions=record["versions"],
        script=script,
        sheet=sheet,
        script_hash=_source_hash(script),
        sheet_hash=_source_hash(sheet),
    )


def _source_hash(source: str) -> str:
    """Name a script or a style sheet to the browser, so that it runs no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def _unit(record: Record) -> str:
    return f"in units of the {record['inputs'][0]['dtype']} samples"


def _plots(contents: ReportContents) -> list[Plot]:
    record, diagnosis, predicted = contents.record, contents.diagnosis, contents.predicted_error
    unit = "sample units"
    choice = contents.lambda_choice
    plots = [
        None if choice is None else lambda_plot(choice),
        picard_plot(diagnosis.picard, unit),
        gain_plot(diagnosis.gain_map.cpu(), diagnosis.conditioning.sigma_max, has_channels=_has_channels(diagnosis)),
        border_plot(record["border"], None if predicted is None else predicted.bands, unit),
        histogram_plot(diagnosis.tests, unit),
        correlation_plot(diagnosis.tests.whiteness),
    ]
    return [plot for plot in plots if plot is not None]


def _has_channels(diagnosis: Diagnosis) -> bool:
    return not torch.equal(diagnosis.gain_map[0], diagnosis.gain_map[1])


def _planes(contents: ReportContents) -> tuple[list[Plane], str | None]:
    """Pick what is shown of each tensor, and say so where it is not all."""
    unit = _unit(contents.record)
    data, estimate = _seen(contents.data, contents), _seen(contents.estimate, contents)
    truth = None if contents.truth is None else _seen(contents.truth, contents)
    low, high = display_range(*(image for image in (data, estimate, truth) if image is not None))
    predicted = contents.predicted_error
    together = "Input and estimate" if truth is None else "Input, estimate and truth"
    planes = [
        Plane("Input", data, low, high, f"As it came. {together} share one scale.", unit),
        Plane(
            "Estimate",
            estimate,
            low,
            high,
            "What was restored." if predicted is None else "What was restored; hatched where it is not to be trusted.",
            unit,
            mask=None if predicted is None else ~predicted.trusted.detach().cpu(),
        ),
    ]
    if truth is not None:
        planes.append(Plane("Truth", truth, low, high, "What was to be found.", unit))
    planes.append(_residual_plane(contents, unit))
    errors = []
    if predicted is not None:
        size = _root_mean_square(predicted.map.detach().cpu())
        errors.append(("Predicted error", size, "What the error is to be expected to be, root mean square."))
    if contents.truth is not None:
        difference = _first(contents.estimate) - _first(contents.truth)
        errors.append(("Actual error", _root_mean_square(difference), "Estimate less truth, by size."))
    if errors:
        top = max(display_range(values)[1] for _, values, _ in errors)
        planes += [Plane(name, values, 0.0, top, text, unit, "viridis") for name, values, text in errors]
    return planes, _selection(contents)


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
    parts: list[Any] = [f"the first of {n_images} images"] if n_images > 1 else []
    if not (counts == {1} or (counts == {3} and contents.is_picture)):
        parts.append("the first channel of each image")
    return f"Shown: {', '.join(parts)}." if parts else None
