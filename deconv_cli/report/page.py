"""A finished restoration as one page that carries everything inside, and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deconv_cli.diagnostics.conditioning import widest
from deconv_cli.diagnostics.predicted_error import ExpectedError
from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.report.page_pictures import PagePicture
from deconv_cli.report.page_sections import PlanSection, Row, describe_kernel_section
from deconv_cli.report.plots import Plot, border_plot, lambda_plot
from deconv_cli.report.reconstruction_record import Record
from deconv_cli.report.run import InvertRun, Run
from deconv_cli.report.run_record import describe_run
from deconv_cli.report.shown_images import ShownImages, draw_views, images_to_show, show_images
from deconv_cli.vocabulary import counted, format_lambda, format_percent, format_size
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class PageHeader:
    """In sentences: what was done, which λ was taken and why, where to trust the picture, and why to doubt it."""

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
    """Say where to trust a picture, by its diagnosis and the expected error, if it was predicted."""
    finding = diagnosis.tests.finding
    sentences = [] if is_trusted else ["Nowhere as it is: see the warnings."]
    # The prompt does not say that a λ that was chosen from the data smooths, and is right.
    is_chosen = any(part.lambda_choice is not None for part in result.channels or (result,))
    is_warned = any(finding.sentence in warning for warning in result.warnings)
    is_smoothed = finding is ResidualFinding.OVER_SMOOTHED
    is_left_out = is_warned or (is_smoothed and is_chosen)
    is_left_out |= result.lam is None and (is_smoothed or finding is ResidualFinding.NOISE_FITTED)
    sentences += [] if is_left_out else [as_sentence(finding.sentence)]
    if diagnosis.resolution is not None and result.prior_sentence is None:
        sentences.append(_resolved(widest(diagnosis.resolution)))
    if predicted is not None:
        unit = "" if result.error_curve is None else f" of {result.unit},"
        sentences += _expected_error(predicted, unit, is_trusted=is_trusted)
    if result.prior_sentence is None:  # a learned prior has no linear inverse
        sentences.append(_edges(result, diagnosis, is_predicted=predicted is not None))
    return " ".join(sentences)


def _resolved(width: float | None) -> str:
    if width is None:
        return "The resolution is not limited evenly: some channel is nearly removed."
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
    trusted = f"{format_percent(share, 3)} of the picture is to be trusted then"
    rest = "" if share == 1 else "; the rest is hatched: there the error outweighs the contrast"
    return [expected, f"What lies outside the frame {inwards}.", f"{trusted}{rest}."]


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


def key_numbers(result: Reconstruction, diagnosis: Diagnosis) -> list[Row]:
    """List the numbers that matter most; those of the linear inverse only if that made the estimate."""
    solution, tests, conditioning = result.solution, diagnosis.tests, diagnosis.conditioning
    condition = result.spectrum.condition
    size = f"{condition:.3g}" if math.isfinite(condition) else "infinite"
    null = (diagnosis.null_share_of_data, diagnosis.null_share_of_estimate)
    of_data, of_estimate = (format_percent(share) if share > 1e-9 else "0 %" for share in null)
    noise = (
        "Noise of the data",
        "unknown" if tests.noise is None else f"{tests.noise:.3g}",
        "given by the user" if tests.is_noise_given else "at most: estimated from the quietest frequencies",
    )
    rows: list[Row] = [
        ("Certificate", f"{solution.certificate:.2g}", "relative size of the gradient; 0 is solved exactly")
        if solution.status.has_certificate
        else ("Steps", str(solution.n_iterations), solution.ending),
        (
            "Residual",
            f"{result.residual.root_mean_square:.3g} rms",
            f"{format_percent(result.residual.relative, 3)} of the data",
        ),
        # The residual of prior photo is compared with the noise that the prior was told.
        *([] if result.settings.objective == "photo" else [noise]),
        ("Condition", size, "how much stronger relative noise comes back from the exact inverse of the kernel"),
        (
            "Numerical rank",
            f"{conditioning.rank} of {conditioning.n_values}",
            f"singular values above {conditioning.threshold:.2g}",
        ),
        (
            "Null space",
            f"{of_data} of the data, {of_estimate} of the estimate",
            "energy that the kernel removes altogether",
        ),
        ("Edges", f"{tests.edge_ratio:.2f}", "residual along the edges, divided by that inside"),
        ("Whiteness", f"{tests.largest_correlation:.2g}", "largest correlation of the residual's neighbors"),
    ]
    if solution.distance_bound is not None:
        bound = f"{solution.distance_bound:.2g}"
        rows.insert(1, ("Distance", bound, "to the exact solution at most, in parts of the estimate"))
    if result.lam is None:
        return rows
    decided = f"{conditioning.degrees_of_freedom:.0f} of {conditioning.n_unknowns}"
    rows += [
        ("Noise gain", f"{conditioning.noise_gain:.3g}", "how much stronger white noise comes back with this λ"),
        ("Degrees of freedom", decided, "how many numbers of the estimate the data decide; λ decides the others"),
    ]
    if diagnosis.resolution is not None:
        width = widest(diagnosis.resolution)
        pixels = "none" if width is None else f"{width:.2f} pixels"
        rows.append(("Resolution", pixels, "how wide a single bright pixel comes back, at half of its height"))
    return rows


def all_numbers(record: Record) -> list[tuple[str, str]]:
    """List every entry of a record: its path, and its value as JSON has it."""
    return list(_entries("", record))


def _entries(path: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _entries(f"{path}.{name}" if path else str(name), member)
    elif isinstance(value, list | tuple) and any(isinstance(member, dict | list | tuple) for member in value):
        for index, member in enumerate(value):
            yield from _entries(f"{path}[{index}]", member)
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(_literal, value)) or "none"
    else:
        yield path, _literal(value)


def _literal(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


TEMPLATES = Path(__file__).parent / "templates"


def fill_template(name: str, record: Record, **contents: Any) -> str:  # noqa: ANN401  whatever a template shows
    """Fill a template of this package, with every number of a record; a missing value is an error."""
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
    """Compute the hash by which the browser recognizes a script or a style sheet, so that it runs no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


@dataclass(frozen=True, eq=False)
class PageContents:
    """The contents of a page of a restoration.

    `views` show a detail under several λ or strengths, which `varied` names, each with whether it is the one that was
    taken. `numbers_of` says what numbers and plots are of, if that is not all of the input.
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
        truth: the true image, of the shape of the estimate.
    """
    result, diagnosis, source = run.reconstruction, run.diagnosis, run.source
    assert diagnosis is not None
    images, omission = images_to_show(run, diagnosis, data, truth)
    n_axes = run.kernel.kernel.n_axes
    contents = PageContents(
        title=Path(source.path).name,
        header=write_header(run, diagnosis),
        shown=show_images(images, omission, source.spacing, n_axes, is_picture=source.is_picture),
        views=draw_views(run.lambda_views, images, n_axes),
        plots=draw_plots(result, result.predicted_error),
        key_numbers=key_numbers(result, diagnosis),
        varied="strengths" if result.settings.objective == "photo" else "λ",
        numbers_of=_of_channels(result, diagnosis),
        spacing=source.spacing,
    )
    return fill_page(run, contents, describe_run(run))


def _of_channels(result: Reconstruction, diagnosis: Diagnosis) -> str | None:
    """Say which channel numbers and plots are of, if channels were restored one by one."""
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


def draw_plots(result: Reconstruction, predicted: ExpectedError | None) -> list[Plot]:
    """Draw the choice of λ, and residual and expected error by distance from the edge."""
    is_in_one_unit = predicted is not None and result.error_curve is result.tone_curve
    border = border_plot(result.border, predicted.bands if predicted is not None and is_in_one_unit else None)
    return [border] if result.lambda_choice is None else [lambda_plot(result.lambda_choice), border]
