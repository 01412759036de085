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
from deconv_cli.diagnostics.residual_finding import ResidualFinding
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.report.drawing import Plot
from deconv_cli.report.key_numbers import Row, all_numbers, key_numbers
from deconv_cli.report.page_pictures import PagePicture
from deconv_cli.report.page_sections import PlanSection, describe_kernel_section
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
from deconv_cli.report.run import InvertRun, Run
from deconv_cli.report.run_record import describe_run
from deconv_cli.report.shown_images import ShownImages, draw_views, images_to_show, show_images
from deconv_cli.vocabulary import counted, format_lambda, format_percent, format_size
from deconv_cli.workflows.diagnose import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class PageHeader:
    """What was done, with which λ and why, where to trust the picture, and why to doubt it: in sentences."""

    done: str
    chosen: str
    trust: str
    warnings: tuple[str, ...]


def write_header(run: InvertRun, diagnosis: Diagnosis) -> PageHeader:
    """Describe a run in a few plain sentences."""
    source, kernel, result = run.source, run.kernel, run.reconstruction
    done = (
        f"{source.path} ({format_size(source.shape)}, {source.dtype}) was restored from what the kernel {kernel.path} "
        f"({format_size(kernel.shape)} taps) made of it; {as_rule(result.boundary).description}."
    )
    if source.is_picture:
        done = f"{done} It was restored {result.reasons.light}."
    trust = describe_trust(result, diagnosis, result.predicted_error, is_trusted=result.is_trusted)
    return PageHeader(done, describe_lambda(result), trust, tuple(map(as_sentence, result.warnings)))


def describe_lambda(result: Reconstruction) -> str:
    """Say which λ was taken, and why."""
    if result.prior_sentence is not None:
        return f"The prior is {result.prior_sentence}. {as_sentence(result.solution.ending)}"
    if result.lam is None:
        return f"There is no λ. Method {result.choice.method}: {result.choice.reason}."
    return f"λ = {format_lambda(result.lam)} (in units of σ²max, penalty {result.penalty}): {result.reasons.lam}."


def describe_trust(
    result: Reconstruction, diagnosis: Diagnosis, predicted: ExpectedError | None, *, is_trusted: bool
) -> str:
    """Say where to trust a picture, and how far.

    Args:
        result: what was examined.
        diagnosis: what was found.
        predicted: the error to be expected of the whole picture; `None` where it was not predicted.
        is_trusted: whether nothing speaks against it.
    """
    finding = diagnosis.tests.finding
    sentences = [] if is_trusted else ["Nowhere as it is: see the warnings."]
    # Of a λ that was chosen from the data, the prompt does not say that it smooths, and is right.
    is_chosen = any(part.lambda_choice is not None for part in result.channels or (result,))
    is_warned = any(finding.sentence in warning for warning in result.warnings)
    is_left_out = is_warned or (finding is ResidualFinding.OVER_SMOOTHED and is_chosen)
    is_of_lambda = finding in (ResidualFinding.OVER_SMOOTHED, ResidualFinding.NOISE_FITTED)
    is_left_out |= is_of_lambda and result.lam is None
    sentences += [] if is_left_out else [as_sentence(finding.sentence)]
    is_measured = diagnosis.resolution is not None and result.prior_sentence is None
    sentences += [_resolved(diagnosis.resolution.widest)] if is_measured and diagnosis.resolution else []
    if predicted is not None:
        unit = "" if result.error_curve is None else f" of {result.unit},"
        sentences += _expected_error(predicted, unit, is_trusted=is_trusted)
    # How strongly noise comes back, and how deep the border reaches, is told by λ.
    is_told = result.prior_sentence is None
    sentences += [_edges(result, diagnosis, is_predicted=predicted is not None)] if is_told else []
    return " ".join(sentences)


def _resolved(width: float | None) -> str:
    if width is None:
        return "The resolution is not limited evenly: some channel hardly comes through."
    if width < 1.05:
        return "Single pixels are resolved."
    return f"Detail finer than about {width:.1f} pixels is not resolved."


def _expected_error(predicted: ExpectedError, unit: str, *, is_trusted: bool) -> list[str]:
    share, actual, depth = predicted.trusted_share, predicted.actual_root_mean_square, predicted.trusted_depth
    real = "" if actual is None else f"; the real one is {actual:.3g}"
    size = f"{predicted.root_mean_square:.3g} rms{unit}"
    size += "" if predicted.in_samples is None else f" or {predicted.in_samples:.3g} in stored values,"
    expected = f"If kernel and boundary are right, an error of {size} is to be expected{real}."
    if not is_trusted:
        return [expected]
    if share == 0:
        return [expected, "No pixel is to be trusted: noise, or what lies outside the frame, outweighs the picture."]
    inwards = f"adds little to it from {counted(depth, 'pixel')} inwards" if depth else "adds nothing to it"
    trusted = f"{format_percent(share, 3)} of the picture is to be trusted then; the rest is hatched"
    return [expected, f"What lies outside the frame {inwards}.", f"{trusted}: there the error outweighs the contrast."]


def _edges(result: Reconstruction, diagnosis: Diagnosis, *, is_predicted: bool) -> str:
    if as_rule(result.boundary).is_periodic:
        return "There is no edge to distrust, if the image does go on around a torus."
    noise = f"noise comes back {diagnosis.conditioning.noise_gain:.3g} times as strong"
    if is_predicted:
        return as_sentence(noise)
    influence = None if result.well_posedness is None else result.well_posedness.influence
    if influence is None or influence.tenth is None:
        return f"A mistake at the edge may reach through the whole picture; {noise}."
    return (
        f"Trust the outermost {max(influence.tenth, 1)} pixels least, where a mistake at the edge has not faded; "
        f"{noise}."
    )


def as_sentence(clause: str) -> str:
    """Begin with a capital, and end with a full stop."""
    return clause[:1].upper() + clause[1:] + ("" if clause.endswith((".", "!", "?")) else ".")


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
        views: a detail under several λ or strengths, each with whether it is the one that was taken.
        plots: what is drawn beside.
        key_numbers: those that matter most.
        varied: what differs between the views.
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
    varied: str = "λ"
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
        varied="strengths" if result.settings.objective == "photo" else "λ",
        numbers_of=_of_channels(result, diagnosis),
        spacing=source.spacing,
    )
    return fill_page(run, contents, describe_run(run))


def _of_channels(result: Reconstruction, diagnosis: Diagnosis) -> str | None:
    """Say which channel numbers and plots are of, where channels were restored one by one."""
    if diagnosis.channel is None:
        of_kernel = (
            "Numbers and plots of the kernel are those of the quadratic prior, under the λ that suits the middle."
        )
        return None if result.quadratic is None else of_kernel
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
    has_parts = predicted is not None and predicted.bands[0].noise is not None
    bands = predicted.bands if predicted is not None and result.error_curve is result.tone_curve else None
    plots = [
        None if choice is None else lambda_plot(choice),
        picard_plot(diagnosis.picard),
        gain_plot(gains, diagnosis.conditioning.sigma_max, has_channels=not torch.equal(gains[0], gains[1])),
        border_plot(result.border, bands),
        error_parts_plot(predicted.bands) if predicted is not None and has_parts else None,
        histogram_plot(diagnosis.tests),
        correlation_plot(diagnosis.tests.whiteness),
    ]
    return [plot for plot in plots if plot is not None]
