"""A finished restoration as one page that carries everything inside, and asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from deconv_cli.diagnostics.predicted_error import ExpectedError
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.prompt_sentences import with_options
from deconv_cli.report.page_pictures import PagePicture, ScaledImage, draw_picture
from deconv_cli.report.reconstruction_record import Record
from deconv_cli.report.run import InputFile, InvertRun, KernelInput, Run, describe_run
from deconv_cli.report.shown_images import ShownImages, describe_omission, images_to_show, show_images
from deconv_cli.report.verdict import Row, Verdict, first_numbers, judge, try_next, vary_smoothing_of
from deconv_cli.vocabulary import format_lambda, format_percent, format_size
from deconv_cli.workflows.lambda_series import LambdaView
from deconv_cli.workflows.measurement import Diagnosis
from deconv_cli.workflows.reconstruction import Reconstruction


def describe_lambda(result: Reconstruction) -> str:
    """Say which λ was taken, and why."""
    if result.prior_sentence is not None:
        return f"The prior is {result.prior_sentence}. {as_sentence(result.solution.ending)}"
    if result.lam is None:
        return f"There is no λ. Method {result.choice.method}: {result.choice.reason}."
    return f"λ = {format_lambda(result.lam)} (in units of σ²max, penalty {result.penalty}): {result.reasons.lam}."


def as_sentence(clause: str) -> str:
    """Begin with a capital, and end with a full stop."""
    return clause[:1].upper() + clause[1:] + ("" if clause.endswith((".", "!", "?")) else ".")


def expert_numbers(result: Reconstruction, diagnosis: Diagnosis) -> list[Row]:
    """List the numbers that an expert looks for; those of the linear inverse only if that made the estimate."""
    solution, tests, conditioning = result.solution, diagnosis.tests, diagnosis.conditioning
    certificate = ("Certificate", f"{solution.certificate:.2g}", "relative size of the gradient; 0 is solved exactly")
    shares = (diagnosis.null_share_of_data, diagnosis.null_share_of_estimate)
    of_data, of_estimate = (format_percent(share) if share > 1e-9 else "0 %" for share in shares)
    in_light = "" if result.tone_curve is None else " in light"
    noise = ", ".join(f"{sigma:.3g}" for sigma in result.noise_sigmas)
    source = "given by the user" if tests.is_noise_given else "standard deviation, estimated from the data"
    if not noise:
        noise, in_light, source = "unknown", "", "no frequency shows the noise alone"
    elif levels := result.solution.noise_levels:
        source += f"; {', '.join(f'{level:.3g}' for level in levels)} in stored values"
    rows = [
        certificate if solution.status.has_certificate else ("Steps", str(solution.n_iterations), solution.ending),
        (
            "Residual",
            f"{result.residual.root_mean_square:.3g} rms",
            f"{format_percent(result.residual.relative, 3)} of the data",
        ),
        ("Noise of the data", f"{noise}{in_light}", source),
        ("Condition", f"{result.spectrum.condition:.3g}", "by how much the exact inverse amplifies noise"),
        ("Null space", f"{of_data}, {of_estimate}", "energy of data and estimate that the kernel removes"),
    ]
    if not result.settings.is_linear:
        return rows
    decided = f"{conditioning.degrees_of_freedom:.0f} of {conditioning.n_unknowns}"
    return [
        *rows,
        ("Noise gain", f"{conditioning.noise_gain:.3g}", "by how much this λ amplifies white noise"),
        ("Degrees of freedom", decided, "how many numbers of the estimate the data determine; λ determines the others"),
    ]


TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, eq=False)
class Page:
    """The contents of a page.

    Attributes:
        numbers: the first three, with their meaning.
        commands: what to do next, with the commands for it.
        warnings, notes: clauses of the library, in which settings are named.
        experts, rows: what was done, in sentences, and the numbers for experts.
        origin: where the kernel came from.
        views: a detail under several λ or strengths, each with the command for it and whether it is as in the result.
    """

    title: str
    verdict: Verdict
    numbers: list[Row]
    commands: list[tuple[str, str]]
    shown: ShownImages
    warnings: Sequence[str]
    notes: Sequence[str]
    experts: Sequence[str]
    rows: list[Row]
    kernel: PagePicture | None = None
    origin: str = ""
    views: Sequence[tuple[PagePicture, str | None, bool]] = ()


def fill_page(page: Page, record: Record) -> str:
    """Write a page as HTML, with every number of a record.

    File names, metadata and messages are untrusted text: everything is escaped, only the page's own script runs,
    and nothing is fetched from anywhere. A missing value is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sheet, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        **vars(page),
        warning_sentences=[as_sentence(with_options(warning)) for warning in page.warnings],
        note_sentences=[as_sentence(with_options(note)) for note in page.notes],
        record=[(name, json.dumps(value, ensure_ascii=False)) for name, value in record.items()],
        versions=record["versions"],
        sheet=sheet,
        script=script,
        sheet_hash=_source_hash(sheet),
        script_hash=_source_hash(script),
    )


def _source_hash(source: str) -> str:
    """Compute the hash by which the browser recognizes a script or a style sheet, so that it runs no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def render_page(run: InvertRun, data: Tensor, truth: Tensor | None = None) -> str:
    """Write the page of a run as HTML.

    Args:
        run: what was done, with a diagnosis.
        data: y, shape `(C_out, *output_size)` or `(B, C_out, *output_size)`.
        truth: the true image, of the shape of the estimate.
    """
    result, diagnosis, source, kernel = run.reconstruction, run.diagnosis, run.source, run.kernel.kernel
    assert diagnosis is not None
    images = images_to_show(source, kernel.n_axes, result, data, diagnosis.residual, truth)
    counts = {data.shape[kernel.channel_axis], result.image.shape[kernel.channel_axis]}
    n_images = data.shape[0] if data.ndim > kernel.n_axes + 1 else 1
    omission = describe_omission(n_images, max(counts), is_color=source.is_picture and counts == {3})
    shown = show_images(images, omission, source.spacing, kernel.n_axes, is_picture=source.is_picture)
    page = describe_page(run, source, result, diagnosis, result.predicted_error, shown, run.lambda_views)
    more = [f"It was restored {result.reasons.light}."] if source.is_picture else []
    if diagnosis.channel is not None:
        number = diagnosis.channel + 1
        more.append(f"Channels were restored separately. Numbers other than the residual belong to channel {number}.")
    page = replace(page, experts=[*page.experts, *more])
    return fill_page(page, describe_run(run))


def describe_page(
    run: Run,
    source: InputFile,
    result: Reconstruction,
    diagnosis: Diagnosis,
    predicted: ExpectedError | None,
    shown: ShownImages,
    views: Sequence[LambdaView],
    doubts: Sequence[str] | None = None,
) -> Page:
    """Describe a restoration of a file; the result and its diagnosis may be those of a part of it.

    `views` show a detail under several λ or strengths. `doubts` are those of the whole, if the result is a part.
    """
    done = (
        f"{source.path} ({format_size(source.shape)}, {source.dtype}) was restored with the kernel {run.kernel.path} "
        f"({format_size(run.kernel.shape)} taps); {as_rule(result.boundary).description}."
    )
    commands = try_next(run.rerun, result, run.kernel, is_picture=source.is_picture)
    drawn = [_draw_view(view, shown.scale, run, result) for view in views]
    return Page(
        title=Path(source.path).name,
        verdict=judge(result, diagnosis.tests.finding, doubts),
        numbers=first_numbers(result, predicted, diagnosis, shown.scale, source.spacing),
        commands=[one for one in commands if one[1] not in {line for _, line, _ in drawn}],
        shown=shown,
        warnings=result.warnings,
        notes=list(dict.fromkeys(run.notes)),
        experts=[done, describe_lambda(result)],
        rows=expert_numbers(result, diagnosis),
        kernel=draw_kernel(run.kernel),
        origin=describe_origin(run.kernel),
        views=drawn,
    )


def _draw_view(
    view: LambdaView, scale: ScaledImage, run: Run, result: Reconstruction
) -> tuple[PagePicture, str | None, bool]:
    """Draw the detail under a λ or at a strength, with the command that restores the whole picture with it."""
    is_color = scale.values.ndim > run.kernel.kernel.n_axes
    lams = ", ".join(f"{lam:.2g}" for lam in dict.fromkeys(view.lams))
    name = f"λ = {lams}" if view.strength is None else f"Strength {view.strength:g}"
    values = view.image.cpu() if is_color else view.image[0].cpu()
    picture = draw_picture(replace(scale, name=name, values=values, caption="", mask=None))
    command = None if view.ratio == 1 else vary_smoothing_of(run.rerun, result, view.ratio)
    return picture, command, view.ratio == 1


def draw_kernel(source: KernelInput) -> PagePicture | None:
    """Draw a kernel as the image of a point of light, or the first of several; of a stack the middle plane."""
    taps = source.kernel.taps.detach().cpu()
    if source.kernel.n_axes == 1:
        return None
    n_kernels = taps.shape[0] * taps.shape[1]
    caption = "The image of a point of light; each square is a tap."
    caption = caption if n_kernels == 1 else f"The first of {n_kernels} kernels. {caption}"
    # A cross-correlation turns its taps by half a circle.
    values = taps[0, 0].flip(tuple(range(source.kernel.n_axes)))
    values = values if values.ndim == 2 else values[len(values) // 2]
    low, high = float(values.min()), max(float(values.max()), 0.0)
    low = low if low < -1e-3 * high else 0.0  # smaller negative taps are rounding
    return draw_picture(ScaledImage("Kernel", values, low, high, caption, "share of the light", false_colors=True))


def describe_origin(source: KernelInput) -> str:
    """Say where a kernel came from, and how large it is."""
    size, found = f"{format_size(source.shape)} taps", source.estimate
    if found is None or not found.found:
        return f"Given: {source.path}, {size}."
    numbers = ", ".join(f"{parameter.name.lower()} {parameter.text}" for parameter in found.parameters)
    return f"Found in the picture itself: {source.path} ({numbers}; lengths in pixels, angles in degrees), {size}."
