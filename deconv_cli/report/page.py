"""A finished restoration as one page that carries everything inside, and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.report.drawing import Plot
from deconv_cli.report.pictures import draw_pictures
from deconv_cli.report.planes import pick_planes
from deconv_cli.report.plots import (
    border_plot,
    correlation_plot,
    error_parts_plot,
    gain_plot,
    histogram_plot,
    lambda_plot,
    picard_plot,
)
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
    planes, shown = pick_planes(contents)
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


def _plots(contents: ReportContents) -> list[Plot]:
    record, diagnosis, predicted = contents.record, contents.diagnosis, contents.predicted_error
    unit = "sample units"
    choice = contents.lambda_choice
    plots = [
        None if choice is None else lambda_plot(choice),
        picard_plot(diagnosis.picard, unit),
        gain_plot(diagnosis.gain_map.cpu(), diagnosis.conditioning.sigma_max, has_channels=_has_channels(diagnosis)),
        border_plot(record["border"], None if predicted is None else predicted.bands, unit),
        None if predicted is None else error_parts_plot(predicted.bands, unit),
        histogram_plot(diagnosis.tests, unit),
        correlation_plot(diagnosis.tests.whiteness),
    ]
    return [plot for plot in plots if plot is not None]


def _has_channels(diagnosis: Diagnosis) -> bool:
    return not torch.equal(diagnosis.gain_map[0], diagnosis.gain_map[1])
