"""A finished restoration as one page that carries everything inside, and asks nothing of any network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deconv_cli.report.comparison import draw_comparison, draw_views
from deconv_cli.report.drawing import Plot
from deconv_cli.report.error_plots import border_plot, correlation_plot, error_parts_plot, histogram_plot
from deconv_cli.report.kernel_section import describe_kernel_section
from deconv_cli.report.key_numbers import all_numbers, key_numbers
from deconv_cli.report.orthogonal_cuts import draw_cuts, plane_of
from deconv_cli.report.page_header import write_header
from deconv_cli.report.page_images import images_to_show
from deconv_cli.report.page_pictures import draw_pictures
from deconv_cli.report.page_template import page_template, read_source, source_hash
from deconv_cli.report.problem_plots import gain_plot, lambda_plot, picard_plot
from deconv_cli.report.run import InvertRun
from deconv_cli.report.run_record import describe_run
from deconv_cli.report.signal_plots import signals_plot
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


def render_page(run: InvertRun, data: Tensor, truth: Tensor | None = None) -> str:
    """Write the page as HTML.

    File names, metadata and messages are untrusted text: everything is escaped, no script but the page's own runs,
    and nothing is fetched from anywhere.

    Args:
        run: what was done, with a diagnosis.
        data: y, shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.
        truth: the image that was to be found, of the shape of the estimate.
    """
    script, sheet = read_source("page.js"), read_source("page.css")
    result, diagnosis, record = run.reconstruction, run.diagnosis, describe_run(run)
    assert diagnosis is not None
    images, omission = images_to_show(run, diagnosis, data, truth)
    n_axes = run.kernel.kernel.n_axes
    cuts = draw_cuts(images, run.source.spacing) if n_axes == 3 else None
    planes = images if cuts is None else [plane_of(image, cuts.geometry.place[0]) for image in images]
    comparison = draw_comparison(planes) if run.source.is_picture and n_axes > 1 else None
    compared = ("Input", "Estimate") if comparison is not None and comparison.is_whole else ()
    apart = [image for image in images if image.name not in compared] if n_axes == 2 else []
    pictures, side = draw_pictures(apart)
    longest = max(max(image.values.shape[-2:]) for image in planes)
    return page_template("page.html").render(
        title=Path(run.source.path).name,
        header=write_header(run, diagnosis),
        comparison=comparison,
        kernel=describe_kernel_section(run.kernel, run.source.spacing),
        views=draw_views(run.lambda_views, images),
        cuts=cuts,
        pictures=pictures,
        omission=omission,
        is_smaller=bool(pictures) and longest > side,
        longest=longest,
        side=side,
        signals=signals_plot(images) if n_axes == 1 else None,
        plots=_plots(result, diagnosis),
        key_numbers=key_numbers(result, diagnosis),
        numbers=all_numbers(record),
        notes=run.notes,
        rerun=run.rerun,
        versions=record["versions"],
        script=script,
        sheet=sheet,
        script_hash=source_hash(script),
        sheet_hash=source_hash(sheet),
    )


def _plots(result: Reconstruction, diagnosis: Diagnosis) -> list[Plot]:
    predicted, choice = result.predicted_error, result.lambda_choice
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
