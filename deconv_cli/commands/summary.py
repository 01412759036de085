"""A finished run as a table: what was done and how good it is, then what to do about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deconv_cli.commands.console import print_note, print_table, print_warning
from deconv_cli.commands.prompt_sentences import with_options
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.noise_model import describe_noise
from deconv_cli.vocabulary import (
    ROUNDING_NOISE,
    LambdaRule,
    counted,
    format_lambda,
    format_memory,
    format_padding,
    format_percent,
    format_size,
    format_spacing,
)

if TYPE_CHECKING:
    from deconv_cli.diagnostics.influence import InfluenceDepth
    from deconv_cli.diagnostics.predicted_error import ExpectedError
    from deconv_cli.diagnostics.well_posedness import WellPosedness
    from deconv_cli.report.chain_page import ChainRun
    from deconv_cli.report.run import Environment, FactorRun, ForwardRun, InputFile, InvertRun, KernelInput, OutputFile
    from deconv_cli.solvers.solution import Solution
    from deconv_cli.tone_curve import ToneCurve
    from deconv_cli.workflows.reconstruction import Reconstruction

Rows = list[tuple[str, str]]
"""Names and values."""


def print_forward_summary(run: ForwardRun) -> None:
    """Print what `deconv forward` did on stderr: a table, then notes."""
    noise = "none" if run.noise is None else f"{run.noise}, seed {run.seed}"
    rows = [
        *_input_rows(run, run.layer),
        *([] if run.tap is None else [("tap", run.tap)]),
        ("boundary", f"{run.boundary}, padding {format_padding(run.padding)}"),
        *_layer_rows(run.layer),
        *_light_rows(run, run.light.reason, run.light.curve),
        ("noise", noise),
        *_output_rows(run.output, run.environment),
    ]
    _print(f"deconv {run.command}", rows, notes=run.notes)


def print_invert_summary(run: InvertRun, *, verbose: bool = False) -> None:
    """Print what `deconv invert` did on stderr: a table, warnings, what to do about them, and notes.

    Args:
        run: what was done.
        verbose: print what an expert may want to know too.
    """
    result = run.reconstruction
    rows = [*_input_rows(run, result.settings.layer), ("boundary", f"{result.boundary}: {result.reasons.boundary}")]
    rows += _layer_rows(result.settings.layer)
    rows += [*_light_rows(run, result.reasons.light, result.tone_curve), *_lambda_rows(result)]
    if run.factor is not None:
        rows.insert(1, ("factor", run.factor.path))
    if colored := [model for model in result.noise if not model.is_white]:
        rows.append(("noise", describe_noise(colored)))
    rows += [("solver", _solver(result)), ("residual", _residual(result))]
    rows += [] if result.lost_directions is None else [("lost", result.lost_directions.sentence)]
    if result.predicted_error is not None:
        rows += error_rows(result.predicted_error, _sample_unit(run.source), is_trusted=result.is_trusted)
    if verbose:
        rows += _details(result)
    rows += _output_rows(run.output, run.environment)
    _, advice = _border_findings(result.well_posedness)
    _print(f"deconv {run.command}", rows, list(result.warnings), [*advice, *run.notes])


def _layer_rows(layer: LayerOptions) -> Rows:
    """Name stride, dilation and the rest, where there are any."""
    return [] if layer.is_plain else [("layer", layer.describe())]


def print_chain_summary(run: ChainRun, *, verbose: bool = False) -> None:
    """Print what `deconv invert --layers` did on stderr: a table, warnings, and notes.

    Args:
        run: the run.
        verbose: name the layers in torch's words.
    """
    result, solution, source = run.inversion, run.inversion.solution, run.source
    share = "all" if result.determined.share > 1 - 1e-6 else format_percent(result.determined.share, 3)
    how = "by the rank of the derivative" if result.determined.is_exact else "as conjugate gradients show it"
    n_steps = solution.n_iterations
    steps = "" if n_steps == 0 else f" after {counted(n_steps, 'iteration')}"
    named = [(layer, layer.description if verbose else layer.description.partition("(")[0]) for layer in result.layers]
    layers = [(f"  {layer.name}", f"{words}: {layer.treatment}") for layer, words in named]
    rows = [
        ("input", f"{source.path}  {format_size(source.shape)} {source.axes} {source.dtype}"),
        ("layers", f"{run.model.layers} of {run.model.path}"),
        *layers,
        ("method", result.method.value),
        *([] if result.lam == 0 else [("λ", f"{result.lam:g} × σ²max, penalty {result.penalty}")]),
        ("solver", f"{_status(solution)}{steps}, certificate {solution.certificate:.2g}"),
        ("residual", f"{format_percent(result.relative_residual, 3)} of the data, through the layers themselves"),
        ("determined", f"{share} of the input's {result.determined.n_dimensions} numbers, {how}"),
        *_output_rows(run.output, run.environment),
    ]
    _print("deconv invert", rows, [doubt.sentence for doubt in result.doubts], run.notes)


def print_factor_summary(run: FactorRun) -> None:
    """Print what `deconv factor` built on stderr: a table, warnings, what to do about them, and notes."""
    inverse, settings = run.inverse, run.inverse.settings
    n_bytes = sum(factor.nbytes for factor in run.factors.values())
    rows = [
        ("kernel", _kernel(run.kernel, settings.layer)),
        (
            "images",
            f"{format_size(inverse.geometry.image_size)}, from outputs of {format_size(inverse.geometry.output_size)}",
        ),
        ("boundary", f"{settings.boundary}, padding {format_padding(settings.padding)}"),
        *_layer_rows(settings.layer),
        ("method", f"{inverse.choice.method}: {inverse.choice.reason}"),
        ("λ", f"{inverse.problem.lam:g} × σ²max, penalty {settings.penalty}"),
        *([] if inverse.rcond is None else [("rcond", f"{inverse.rcond:g}")]),
        ("factors", f"{format_memory(n_bytes)} in {run.factoring_time_s:.2f} s"),
        ("output", f"{run.path}  {format_memory(run.n_bytes)}"),
        ("cost", _cost(run.environment)),
    ]
    warnings, advice = _border_findings(run.well_posedness)
    _print("deconv factor", rows, warnings, [*advice, *run.all_notes])


def _print(title: str, rows: Rows, warnings: list[str] | None = None, notes: list[str] | tuple[str, ...] = ()) -> None:
    print_table(title, rows)
    for warning in warnings or []:
        print_warning(with_options(warning))
    for note in notes:
        print_note(with_options(note))


def _input_rows(run: ForwardRun | InvertRun, layer: LayerOptions = PLAIN) -> Rows:
    source = run.source
    return [
        ("input", f"{source.path}  {format_size(source.shape)} {source.axes} {source.dtype}{_spacing(source)}"),
        ("kernel", _kernel(run.kernel, layer)),
    ]


def _spacing(source: InputFile) -> str:
    return "" if source.spacing is None else f", {format_spacing(source.spacing)}"


def _light_rows(run: ForwardRun | InvertRun, reason: str, curve: ToneCurve | None) -> Rows:
    """Say in what a convolution acted; of tensors, which are no light, there is nothing to say."""
    return [("light", reason)] if run.source.is_picture or curve is not None else []


def _kernel(source: KernelInput, options: LayerOptions) -> str:
    gain, field = source.kernel.dc_gain, source.kernel.field
    if field is not None:
        sums = [total for row in field.sums for total in row]
        total = f"varies over {format_size(field.grid)} places of the frame, sums {min(sums):.4g} to {max(sums):.4g}"
    elif source.kernel.is_per_channel:
        total = f"one for each channel, sums {', '.join(f'{row[0]:.4g}' for row in gain)}"
    else:
        n_outputs, n_inputs = source.kernel.with_layer(options).n_channels
        total = f"sum {gain[0][0]:.4g}" if source.kernel.shared else f"{n_inputs} → {n_outputs} channels"
    layer = "" if source.layer is None else f" layer {source.layer}"
    bias = ", with its bias" if source.has_bias else ""
    return f"{source.path}{layer}  {format_size(source.shape)} {source.convention}, {total}{bias}"


def _output_rows(output: OutputFile, environment: Environment) -> Rows:
    return [("output", f"{output.path}  {format_size(output.shape)} {output.dtype}"), ("cost", _cost(environment))]


def _cost(environment: Environment) -> str:
    memory = format_memory(environment.peak_memory_bytes)
    return f"{environment.time_s:.2f} s, {memory}, {environment.device}, {environment.dtype}"


def _lambda_rows(result: Reconstruction) -> Rows:
    if result.lam is not None:
        return [("λ", f"{format_lambda(result.lam)} × σ²max, penalty {result.penalty}: {result.reasons.lam}")]
    prior = result.prior_sentence
    return [("minimized", result.solution.objective)] if prior is None else [("prior", f"photo: {prior}")]


def _solver(result: Reconstruction) -> str:
    solution, status = result.solution, _status(result.solution)
    n = solution.n_iterations
    steps = "" if n == 0 else f" after {counted(n, 'iteration')}"
    methods = " and ".join(dict.fromkeys(part.choice.method for part in result.channels or (result,)))
    if not solution.status.has_certificate:
        return f"{methods}, {counted(n, 'step')}: {solution.ending}"
    certificate = f"certificate {solution.certificate:.2g}"
    bound = solution.distance_bound
    distance = "" if bound is None else f", within {format_percent(bound)} of the solution"
    return f"{methods}, {status}{steps}, {certificate}{distance}"


def _status(solution: Solution) -> str:
    status = solution.status
    return status.value if status.is_success else status.name.lower().replace("_", " ")


def _residual(result: Reconstruction) -> str:
    residual, noise = result.residual, _noise(result)
    of_light = "" if result.tone_curve is None else " of light"
    size = f"{residual.root_mean_square:.3g} rms{of_light}, {format_percent(residual.relative, 3)} of the data"
    return size if noise is None else f"{size}; noise {noise}"


def _noise(result: Reconstruction) -> str | None:
    """Describe how large the noise was taken to be, where something looked at it."""
    choice, predicted = result.lambda_choice, result.predicted_error
    if choice is None:
        return None if predicted is None else f"σ {predicted.sigma:.3g}, as the expected error takes it"
    choices = [part.lambda_choice for part in result.channels if part.lambda_choice is not None] or [choice]
    sigmas = [f"{one.sigma:.3g}" for one in choices]
    sigma = sigmas[0] if len(set(sigmas)) == 1 else ", ".join(sigmas)
    if not choice.is_sigma_given:
        if not all(model.is_white for model in result.noise):
            return f"σ {sigma}, estimated with its spectrum"
        is_rounding = all(one.sigma == ROUNDING_NOISE for one in choices)
        is_of_layer = not result.settings.layer.is_plain
        estimated = "the likeliest" if is_of_layer else "estimated where the kernel passes least"
        source = "that of rounding to whole numbers" if is_rounding else estimated
        return f"σ {sigma}, {source}"
    is_used = choice.rule in (LambdaRule.UPRE, LambdaRule.DISCREPANCY)
    return f"σ {sigma}, given by the user" + ("" if is_used else f", but not used by rule {choice.rule}")


def _sample_unit(source: InputFile) -> str:
    """Name the unit of the samples of a file, after a space; nothing for fractions."""
    if source.is_picture and source.dtype == "uint8":
        return " gray levels of 255"
    return " counts" if "int" in source.dtype else ""


def error_rows(predicted: ExpectedError, unit: str, *, is_trusted: bool) -> Rows:
    """Say how large an error is to be expected, and where to trust the result."""
    size = predicted.root_mean_square if predicted.in_samples is None else predicted.in_samples
    depth, share, actual = predicted.trusted_depth, predicted.trusted_share, predicted.actual_root_mean_square
    border = f"the border adds little from {counted(depth, 'pixel')} inwards" if depth else "the border adds nothing"
    trusted = f"{border}; trust {format_percent(share)} of the pixels"
    outweighed = "to be trusted nowhere: it outweighs the picture"
    to_trust = (outweighed if depth is None else trusted) if is_trusted else "not to be trusted: see below"
    expected = f"{size:.3g}{unit} rms; {to_trust}"
    return [("expected error", expected), *([] if actual is None else [("real error", f"{actual:.3g} rms")])]


def _details(result: Reconstruction) -> Rows:
    """List what an expert may want to know."""
    spectrum, border, predicted = result.spectrum, result.border, result.predicted_error
    condition = f"{spectrum.condition:.4g}" if math.isfinite(spectrum.condition) else "infinite"
    return [
        *([] if result.lam is None else [("minimized", result.solution.objective)]),
        ("padding", format_padding(result.padding)),
        ("method", f"{result.choice.method}: {result.choice.reason}"),
        *([] if result.rcond is None else [("rcond", f"{result.rcond:g}")]),
        ("tolerance", f"{result.tolerance:.2g}"),
        ("conditioning", f"σmax {spectrum.sigma_max:.4g}, σmin {spectrum.sigma_min:.4g}, condition {condition}"),
        ("at the edge", _inwards("residual", [(band.distance, band.residual_rms) for band in border])),
        *([] if predicted is None else [("", _inwards("error", [(b.distance, b.predicted) for b in predicted.bands]))]),
    ]


def _inwards(name: str, rms: list[tuple[int, float]]) -> str:
    (_, edge), (depth, inside) = rms[0], rms[-1]
    return f"{name} {edge:.3g} rms on the edge, {inside:.3g} from {counted(depth, 'pixel')} inwards"


def _border_findings(finding: WellPosedness | None) -> tuple[list[str], list[str]]:
    """Describe what the boundary loses, and where its influence reaches deep: warnings, and what to do about them."""
    if finding is None:
        return [], []
    if finding.is_well_posed is False:
        return [finding.reason], list(finding.advice)
    notes = [finding.reason] if finding.is_well_posed is None or finding.n_lost_modes else []
    if finding.is_deep and finding.influence is not None:
        notes.append(_influence(finding.influence))
    return [], notes


def _influence(influence: InfluenceDepth) -> str:
    depths = {"10 %": influence.tenth, "1 %": influence.hundredth, "0.1 %": influence.thousandth}
    faded = [f"{part} after {counted(n, 'pixel')}" for part, n in depths.items() if n is not None]
    deeper = [part for part, n in depths.items() if n is None]
    if not faded:
        return f"a mistake at the edge goes deep into the image: more than {deeper[0]} of it"
    sentence = f"a mistake at the edge fades to {', to '.join(faded)}"
    return f"{sentence}; more than {deeper[0]} of it goes deeper still" if deeper else sentence
