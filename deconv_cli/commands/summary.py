"""A finished run as a table: what was done and how good it is, then warnings, advice and notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deconv_cli.commands.console import Rows, print_note, print_table, print_warning, shown_name
from deconv_cli.commands.progress import format_duration
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.prompt_sentences import with_options
from deconv_cli.vocabulary import (
    counted,
    format_lambda,
    format_memory,
    format_padding,
    format_percent,
    format_size,
    format_spacing,
)

if TYPE_CHECKING:
    from pathlib import Path

    from deconv_cli.blocks.block_task import BlockReconstruction, BlockTask
    from deconv_cli.blocks.invert_blocks import BlockRun
    from deconv_cli.diagnostics.predicted_error import ExpectedError
    from deconv_cli.diagnostics.well_posedness import WellPosedness
    from deconv_cli.io.region_arrays import RegionTarget
    from deconv_cli.report.block_page import BlockInvertRun
    from deconv_cli.report.chain_page import ChainRun
    from deconv_cli.report.run import Environment, ForwardRun, InputFile, InvertRun, KernelInput, OutputFile
    from deconv_cli.workflows.reconstruction import Reconstruction


def print_forward_summary(run: ForwardRun) -> None:
    """Print what `deconv forward` did on stderr."""
    rows = [
        *_input_rows(run.source, run.kernel, run.layer),
        *([] if run.tap is None else [("tap", run.tap)]),
        ("boundary", f"{run.boundary}, padding {format_padding(run.padding)}"),
        *_layer_rows(run.layer),
        *([("light", run.light.reason)] if run.source.is_picture or run.light.curve is not None else []),
        ("noise", "none" if run.noise is None else f"{run.noise}, seed {run.seed}"),
        *_output_rows(run.output, run.environment),
    ]
    _print(f"deconv {run.command}", rows, notes=run.notes)


def print_invert_summary(run: InvertRun, *, verbose: bool = False) -> None:
    """Print what `deconv invert` did on stderr: ten lines for a photograph; `verbose` adds rows for experts."""
    result, source = run.reconstruction, run.source
    layer, reasons = result.settings.layer, result.reasons
    rows = _input_rows(source, run.kernel, layer)
    rows += [("boundary", f"{result.boundary}: {reasons.boundary}"), *_layer_rows(layer)]
    if source.is_picture or result.tone_curve is not None:
        rows.append(("light", reasons.light))
    if result.lam is not None:
        rows.append(("λ", f"{format_lambda(result.lam)}, penalty {result.penalty}: {reasons.lam}"))
    elif result.prior_sentence is not None:
        rows.append(_prior_row(result.settings.objective, result.finest))
    else:
        solution, numbers = result.solution, ["none" if g is None else f"{g:.4g}" for g in result.gains]
        gain = f"a gain of {numbers[0]}" if len(numbers) == 1 else f"gains of {', '.join(numbers)}"
        at_gain = "" if numbers == ["none"] else f", by {gain} units a count"
        rows += [
            ("minimized", solution.objective),
            ("iterations", f"{solution.n_iterations}: {with_options(solution.ending)}{at_gain}"),
        ]
    rows.append(("residual", f"{format_percent(result.residual.relative, 3)} of the data{_noise(result)}"))
    rows += [] if result.lost_directions is None else [("lost", result.lost_directions.sentence)]
    if result.determined is not None:
        lost = format_percent(1 - result.determined.share)
        rows.append(("determined", f"not all: the layer loses {lost} of a random input"))
    if result.predicted_error is not None:
        error, unit = result.actual_error, _sample_unit(source)
        rows.append(error_row(result.predicted_error, unit, error, is_trusted=result.is_trusted))
    elif result.actual_error is not None:
        rows.append(("error", f"{result.actual_error:.3g}{_sample_unit(source)}, compared with the truth"))
    rows += _details(result) if verbose else []
    rows += _output_rows(run.output, run.environment)
    _print(f"deconv {run.command}", rows, result.warnings, [*_border_advice(result.well_posedness), *run.notes])


def _details(result: Reconstruction) -> Rows:
    """List the rows for an expert."""
    solution, spectrum = result.solution, result.spectrum
    certificate = f", certificate {solution.certificate:.2g}" if solution.status.has_certificate else ""
    condition = f"{spectrum.condition:.4g}" if result.is_condition_known else "not computed for a layer"
    return [
        ("minimized", solution.objective),
        ("padding", format_padding(result.padding)),
        ("method", f"{result.choice.method}: {result.choice.reason}"),
        (
            "solver",
            f"{counted(solution.n_iterations, 'iteration')}{certificate}, tolerance {result.tolerance:.2g}",
        ),
        ("conditioning", f"σmax {spectrum.sigma_max:.4g}, σmin {spectrum.sigma_min:.4g}, condition {condition}"),
    ]


def print_chain_summary(run: ChainRun) -> None:
    """Print what `deconv invert --layers` did on stderr."""
    result, source = run.inversion, run.source
    share = "all" if result.determined.share > 1 - 1e-6 else format_percent(result.determined.share, 3)
    how = "by the rank of the derivative" if result.determined.is_exact else "as estimated by conjugate gradients"
    rows = [
        ("input", _file(source.path, source.shape, source.axes, source.dtype)),
        ("layers", f"{run.model.layers} of {shown_name(run.model.path)}"),
        *((f"  {layer.name}", f"{layer.description}: {layer.treatment}") for layer in result.layers),
        ("method", result.method.value),
        *([] if result.lam == 0 else [("λ", f"{result.lam:g}, penalty {result.penalty}")]),
        ("iterations", f"{result.solution.n_iterations}: {with_options(result.ending)}"),
        ("residual", f"{format_percent(result.relative_residual, 3)} of the data, through the layers themselves"),
        ("determined", f"{share} of the input's {result.determined.n_dimensions} numbers, {how}"),
        *_output_rows(run.output, run.environment),
    ]
    _print("deconv invert", rows, [doubt.sentence for doubt in result.doubts], run.notes)


def _print(title: str, rows: Rows, warnings: Iterable[str] = (), notes: Iterable[str] = ()) -> None:
    """Print a table, then each warning and each note once."""
    print_table(title, rows)
    for warning in dict.fromkeys(warnings):
        print_warning(with_options(warning))
    for note in dict.fromkeys(notes):
        print_note(with_options(note))


def _input_rows(source: InputFile, kernel: KernelInput, layer: LayerOptions = PLAIN) -> Rows:
    spacing = "" if source.spacing is None else f", {format_spacing(source.spacing)}"
    return [
        ("input", _file(source.path, source.shape, source.axes, source.dtype) + spacing),
        ("kernel", _kernel(kernel, layer)),
    ]


def _file(path: Path | str, shape: Sequence[int], *words: str, of: str = "") -> str:
    """Name a file, or a part of it, with the size and the kind of its samples."""
    return f"{shown_name(str(path))}{of}  {' '.join((format_size(shape), *words))}"


def _layer_rows(layer: LayerOptions) -> Rows:
    return [] if layer.is_plain else [("layer", layer.describe())]


def _kernel(source: KernelInput, options: LayerOptions) -> str:
    from deconv_cli.kernels.sources.formula import name_numbers

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
    named = "" if source.sha256 else name_numbers(source.path)
    total += f", {named}" if named else ""
    bias = ", with its bias" if source.has_bias else ""
    return f"{_file(source.path, source.shape, source.convention, of=layer)}, {total}{bias}"


def _output_rows(output: OutputFile, environment: Environment) -> Rows:
    return [
        ("output", _file(output.path, output.shape, output.dtype)),
        ("cost", _cost(environment)),
    ]


def _cost(environment: Environment) -> str:
    memory = format_memory(environment.peak_memory_bytes)
    return f"{environment.time_s:.2f} s, {memory}, {environment.device}, {environment.dtype}"


def _noise(result: Reconstruction) -> str:
    """Name the size of the noise after a semicolon, if it was measured or given."""
    sigmas = ", ".join(dict.fromkeys(f"{sigma:.3g}" for sigma in result.noise_sigmas))
    in_light = "" if result.tone_curve is None else " in light"
    return f"; noise σ {sigmas}{in_light}" if sigmas else ""


def _sample_unit(source: InputFile) -> str:
    """Name the unit of the samples of a file, after a space; nothing for fractions."""
    if source.is_picture and source.dtype == "uint8":
        return " gray levels of 255"
    return " counts" if "int" in source.dtype else ""


def error_row(predicted: ExpectedError, unit: str, actual: float | None = None, *, is_trusted: bool) -> tuple[str, str]:
    """Describe the size of the expected error, where to trust the result, and the real error if that is known."""
    depth, share = predicted.trusted_depth, predicted.trusted_share
    if not is_trusted:
        to_trust = "not to be trusted: see below"
    else:
        to_trust = f"trust {format_percent(share)} of the pixels" + (
            f", from {counted(depth, 'pixel')} inside the edge" if depth else ""
        )
    real = "" if actual is None else f" (truly {actual:.3g})"
    return "expected error", f"{predicted.size:.3g}{unit}{real}; {to_trust}"


def _border_advice(finding: WellPosedness | None) -> list[str]:
    """Describe what the boundary loses, or what to do about it if a warning describes it."""
    if finding is None:
        return []
    if finding.is_well_posed is False:
        return list(finding.advice)
    return [finding.reason] if finding.is_well_posed is None or finding.n_lost_modes else []


def print_block_plan(run: BlockRun, target: Path, expected_s: float) -> None:
    """Print what would be done on stderr, and how many seconds it would take."""
    task = run.task
    rows = [
        ("input", _large_input(task)),
        *_plan_rows(task),
        ("time", f"about {format_duration(expected_s)}"),
        ("output", _output(task.target)),
        *(("", _output(extra)) for extra in task.extras.targets),
    ]
    _print("deconv invert --dry-run", rows, notes=[*task.plan.notes, *task.plan.seam_notes])
    if target.exists():
        print_note(f"the output '{target}' exists already; a run needs --force to replace it")


def _output(target: RegionTarget) -> str:
    return f"{_file(target.path, target.shape, target.dtype)}, {format_memory(target.n_bytes)}"


def print_block_summary(run: BlockInvertRun) -> None:
    """Print what was done on stderr: a table, warnings and notes."""
    found, target = run.reconstruction, run.task.target
    summary, settings, resolution = found.summary, found.settings, found.task.problem.resolution
    assert summary is not None
    rows = [
        ("input", _large_input(found.task)),
        ("kernel", _file(run.kernel.path, run.kernel.shape, run.kernel.convention)),
        ("boundary", f"{settings.boundary}: {resolution.reasons.boundary}"),
        *([("light", resolution.reasons.light)] if found.task.problem.source.is_picture else []),
        _objective_row(found),
        *_plan_rows(found.task),
        *_seam_rows(found),
        ("residual", f"{summary.residual_rms:.3g} rms, {format_percent(summary.residual, 3)} of the data"),
        *_error_rows(found),
    ]
    rows += [("output", _file(target.path, target.shape, target.dtype)), ("cost", _cost(run.environment))]
    _print("deconv invert", rows, [doubt.sentence for doubt in found.doubts], run.notes)


def _objective_row(found: BlockReconstruction) -> tuple[str, str]:
    """Name the objective, with what was chosen for all blocks."""
    settings, choices = found.settings, found.plan.choices
    if found.lam is not None:
        reason = found.task.problem.resolution.reasons.lam
        return "λ", f"{format_lambda(found.lam)}, penalty {settings.penalty}: {reason}"
    if found.prior_sentence is not None:
        return _prior_row(settings.objective, choices.finest)
    more = "" if choices.weight is None else f", weight {choices.weight:.4g}"
    more += "" if choices.iterations is None else f", {counted(choices.iterations, 'iteration')}"
    return "minimized", f"{settings.objective}{more}"


def _prior_row(prior: str, finest: float | None) -> tuple[str, str]:
    """Name a learned prior, and the detail that it fills in."""
    from deconv_cli.workflows.trust import describe_filled_in

    return "prior", f"{prior}: {describe_filled_in(finest)}"


def _seam_rows(found: BlockReconstruction) -> Rows:
    """Say how much blocks differ beside their seams, if there are any."""
    if found.summary is None or not any(found.task.grid.is_cut):
        return []
    measured = f"{found.seam:.2g} of the range, measured at {counted(found.summary.n_seams, 'place')}"
    return [("at the seams", "not measured" if found.seam is None else measured)]


def _error_rows(found: BlockReconstruction) -> Rows:
    """Say how large the expected error is, and what it was predicted on."""
    expected = found.expected_error
    if expected is None:
        return []
    is_light = found.task.problem.resolution.tone_curve is not None and found.settings.is_linear
    row = error_row(expected, " in light" if is_light else "", is_trusted=not found.doubts)
    return [row, ("", f"by {expected.pieces}")]


def _large_input(task: BlockTask) -> str:
    source = task.problem.source
    return _file(source.path, source.shape, task.problem.layout.axes, source.dtype)


def _plan_rows(task: BlockTask) -> Rows:
    """Say how the picture is cut."""
    grid, halo = task.grid, task.plan.halo
    memory = ("memory", f"about {format_memory(task.plan.block_bytes)} a block")
    if not any(grid.is_cut):
        one = "the picture is one block" if grid.n_blocks == 1 else f"{grid.n_blocks}, each of a whole image"
        return [("blocks", f"{one} of {format_size(task.problem.image_size)}; nothing is cut"), memory]
    return [
        ("blocks", f"{grid.n_blocks} of {format_size(grid.along_space(grid.core))}, with a halo of {halo}"),
        memory,
        ("seams", f"at most {halo.predicted:.2g} of the range is expected"),
    ]
