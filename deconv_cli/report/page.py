"""A finished restoration as one page that carries everything inside, and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconv_cli.diagnostics.predicted_error import ExpectedError
from deconv_cli.report.drawing import Plot
from deconv_cli.report.error_plots import border_plot, correlation_plot, error_parts_plot, histogram_plot
from deconv_cli.report.kernel_section import describe_kernel_section
from deconv_cli.report.key_numbers import Row, all_numbers, key_numbers
from deconv_cli.report.page_header import PageHeader, write_header
from deconv_cli.report.page_pictures import PagePicture
from deconv_cli.report.plan_section import PlanSection
from deconv_cli.report.problem_plots import gain_plot, lambda_plot, picard_plot
from deconv_cli.report.record import Record
from deconv_cli.report.run import InvertRun, Run
from deconv_cli.report.run_record import describe_run
from deconv_cli.report.shown_images import ShownImages, draw_views, images_to_show, show_images
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction

TEMPLATES = Path(__file__).parent / "templates"


def fill_template(name: str, record: Record, **contents: Any) -> str:  # noqa: ANN401  whatever a template shows
    """Fill a template of this package, with every number of a record; a value that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sheet = read_source("page.css")
    return environment.get_template(name).render(
        numbers=all_numbers(record),
        versions=record["versions"],
        sheet=sheet,
        sheet_hash=source_hash(sheet),
        **contents,
    )


def read_source(name: str) -> str:
    """Read a script or a style sheet."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def source_hash(source: str) -> str:
    """Name a script or a style sheet to the browser, so that it runs no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


@dataclass(frozen=True, eq=False)
class PageContents:
    """What a page shows of a restoration, ready to be filled in.

    Attributes:
        title: name of the input.
        header: the first lines.
        shown: the images.
        views: a detail under several λ, each with whether it is the one that was taken.
        plots: what is drawn beside.
        key_numbers: those that matter most.
        numbers_of: what the key numbers and plots are of, where that is not all of the input.
        spacing: distances of the samples along the axes of space, where they are known.
        plan: how the input was cut; `None` where it was not.
    """

    title: str
    header: PageHeader
    shown: ShownImages
    views: list[tuple[PagePicture, bool]]
    plots: list[Plot]
    key_numbers: list[Row]
    spacing: tuple[float, ...] | None
    numbers_of: str | None = None
    plan: PlanSection | None = None


def render_page(run: InvertRun, data: Tensor, truth: Tensor | None = None) -> str:
    """Write the page as HTML.

    File names, metadata and messages are untrusted text: everything is escaped, no script but the page's own runs,
    and nothing is fetched from anywhere.

    Args:
        run: what was done, with a diagnosis.
        data: y, shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.
        truth: the image that was to be found, of the shape of the estimate.
    """
    result, diagnosis, source = run.reconstruction, run.diagnosis, run.source
    assert diagnosis is not None
    images, omission = images_to_show(run, diagnosis, data, truth)
    contents = PageContents(
        title=Path(source.path).name,
        header=write_header(run, diagnosis),
        shown=show_images(images, omission, source.spacing, run.kernel.kernel.n_axes, is_picture=source.is_picture),
        views=draw_views(run.lambda_views, images, run.kernel.kernel.n_axes),
        plots=draw_plots(result, diagnosis, result.predicted_error),
        key_numbers=key_numbers(result, diagnosis),
        numbers_of=_of_channels(result, diagnosis),
        spacing=source.spacing,
    )
    return fill_page(run, contents, describe_run(run))


def _of_channels(result: Reconstruction, diagnosis: Diagnosis) -> str | None:
    """Say which channel numbers and plots are of, where channels were restored one by one."""
    if diagnosis.channel is None:
        return None
    choices = [part.lambda_choice for part in result.channels]
    chosen = "and "
    if result.lambda_choice is not None:
        chosen = f"the choice of λ is that of channel {choices.index(result.lambda_choice) + 1}, and "
    return (
        "Each channel was restored by itself: certificate, residual and predicted error are of all of them, "
        f"{chosen}all else that of channel {diagnosis.channel + 1}."
    )


def fill_page(run: Run, contents: PageContents, record: Record) -> str:
    """Write a page as HTML, with every number of a record."""
    script = read_source("page.js")
    return fill_template(
        "page.html",
        record,
        **vars(contents),
        kernel=describe_kernel_section(run.kernel, contents.spacing),
        notes=run.notes,
        rerun=run.rerun,
        script=script,
        script_hash=source_hash(script),
    )


def draw_plots(result: Reconstruction, diagnosis: Diagnosis, predicted: ExpectedError | None) -> list[Plot]:
    """Draw the problem, the residual and the error to be expected."""
    choice = result.lambda_choice
    gains = diagnosis.gain_map.cpu()
    plots = [
        None if choice is None else lambda_plot(choice),
        picard_plot(diagnosis.picard),
        gain_plot(gains, diagnosis.conditioning.sigma_max, has_channels=not torch.equal(gains[0], gains[1])),
        border_plot(result.border, None if predicted is None else predicted.bands),
        None if predicted is None else error_parts_plot(predicted.bands),
        histogram_plot(diagnosis.tests),
        correlation_plot(diagnosis.tests.whiteness),
    ]
    return [plot for plot in plots if plot is not None]
