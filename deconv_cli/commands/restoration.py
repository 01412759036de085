"""One file restored: read it, reconstruct, and write what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deconv_cli.commands.console import show_picture
from deconv_cli.commands.context import (
    SAME_SPACING,
    Context,
    ExtraOutputs,
    LoadedInput,
    PlannedOutputs,
    describe_output,
    environment_of,
)
from deconv_cli.commands.job import Finish, Job, Outcome, Source
from deconv_cli.commands.option_groups import OptionValues, PrintOptions
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.settings_options import SettingValues, layer_options
from deconv_cli.commands.summary import print_invert_summary
from deconv_cli.errors import TooLargeError, UsageError
from deconv_cli.input_defaults import DEFAULTS
from deconv_cli.layer_options import LayerOptions
from deconv_cli.parts import BOUNDARIES
from deconv_cli.settings import ReconstructionSettings, as_typed
from deconv_cli.vocabulary import InputKind, Light, format_spacing, parse_padding

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.io import ImageFile, OutputPlan, PreparedOutput
    from deconv_cli.report.run import InvertRun
    from deconv_cli.workflows.diagnose import Diagnosis
    from deconv_cli.workflows.lambda_series import LambdaView
    from deconv_cli.workflows.pipeline import Pipeline
    from deconv_cli.workflows.reconstruction import Reconstruction
    from deconv_cli.workflows.resolution import RecordedConvolution, Resolution

N_ALIGNED = 3
"""The kernel is held against so many inputs, the first of a run: looking takes longer than to restore a picture."""
NOTABLE_NOISE = 1e-3
"""Part of the spread of an array from which on noise spoils what is restored under the λ of tensors."""


class Restoration:
    """Restores one input after another; what pictures share, and what tensors share, is prepared once.

    Args:
        context: kernel, device and files.
        settings: those that were typed.
        extra: what is written besides the estimate.
        printed: what is printed.
    """

    def __init__(self, context: Context, settings: SettingValues, extra: ExtraOutputs, printed: PrintOptions) -> None:
        self._context = context
        self._settings = settings
        self._extra = extra
        self._printed = printed
        self._pipelines: dict[InputKind, Pipeline] = {}
        self._making = threading.Lock()

    def restore(self, job: Job, source: Source, progress: WorkProgress) -> Finish:
        """Estimate the image of one input; what it gives measures the estimate, writes and describes it."""
        context = self._context
        loaded = context.load(source)
        context.loaded.refuse_for(loaded.image, tuple(loaded.values.shape[2:]))
        kind, notes = choose_kind(loaded.image, lambda: loaded.values, context.loaded, self._settings)
        pipeline = self._pipeline(kind)
        resolution = self._resolve(pipeline, loaded.image)
        resolution = replace(resolution, notes=(*notes, *resolution.notes))
        n_channels = loaded.values.shape[1]
        if not resolution.is_per_channel:
            n_channels = context.loaded.kernel.with_layer(resolution.settings.layer).n_inputs(n_channels)
        same_size = context.keeps_size(resolution.settings.padding, resolution.settings.layer)
        plan = context.plan(job, loaded, n_channels=n_channels, same_size=same_size)
        planned = self._extra.plan(loaded, n_channels, same_size=same_size, force=context.files.force)
        try:
            measure = pipeline.begin(loaded.values, resolution, truth=planned.truth, progress=progress)
        except TooLargeError as error:
            if not _would_be_cut(job.source, loaded.image, context.loaded, resolution.settings):
                raise
            copy = "a TIFF (.tif) or Zarr (.zarr) copy, which is restored block by block"
            raise TooLargeError(f"{str(error).removesuffix('.')}, or {copy}.") from error
        diagnosis: Diagnosis | None = None
        views: tuple[LambdaView, ...] = ()
        if planned.page is not None:
            result = measure()
            progress.begin("examining the result")
            # A page asks for a prediction, which is refused of estimates that are not linear.
            diagnosis = pipeline.diagnose(result, loaded.values)
            views = pipeline.vary_lambda(result, loaded.values, loaded.image.dtype)
            measure = partial(_as_it_is, result)
        examined = partial(self._describe, job, loaded, diagnosis=diagnosis, views=views)
        return partial(self._finish, loaded, plan, planned, measure, examined)

    def _resolve(self, pipeline: Pipeline, image: ImageFile) -> Resolution:
        """Fill in what was left open, from what the file says of itself."""
        loaded = self._context.loaded
        recorded, notes = recorded_convolution(image, loaded.source.sha256)
        if recorded is not None and recorded.tap not in (None, "product"):
            raise UsageError(
                f"deconv invert undoes products of pixels and weights alone, but deconv forward made '{image.path}' "
                f"with --tap {recorded.tap}; apply the kernel without --tap."
            )
        resolution = pipeline.resolve(recorded or loaded.recorded, image.tone_curve, image.dtype)
        resolution = replace(resolution, notes=(*resolution.notes, *notes))
        if "spacing" not in self._settings and loaded.inverse is None:
            resolution = with_spacing(resolution, image)
        return resolution

    def _finish(
        self,
        loaded: LoadedInput,
        plan: OutputPlan,
        planned: PlannedOutputs,
        measure: Callable[[], Reconstruction],
        examined: Callable[[PreparedOutput, Reconstruction], InvertRun],
    ) -> Outcome:
        """Write what came of one input, and describe it."""
        from deconv_cli.report.run_record import describe_run

        result = measure()
        prepared = plan.prepare(result.image.cpu())
        run = examined(prepared, _measured(result, loaded, prepared))
        record = describe_run(run)
        prepared.write(record)
        planned.write(run, record, loaded.values)
        return Outcome(
            record,
            partial(print_invert_summary, run, verbose=self._printed.verbose),
            doubts=tuple(doubt.sentence for doubt in run.reconstruction.doubts),
            show=partial(show_picture, result.image, n_axes=run.kernel.kernel.n_axes, is_color=loaded.image.is_picture),
            warnings=run.reconstruction.cautions,
        )

    def _describe(
        self,
        job: Job,
        loaded: LoadedInput,
        prepared: PreparedOutput,
        result: Reconstruction,
        *,
        diagnosis: Diagnosis | None,
        views: tuple[LambdaView, ...],
    ) -> InvertRun:
        from deconv_cli.report.run import InvertRun

        context = self._context
        doubts = _doubt_alignment(context, loaded, result) if job.number <= N_ALIGNED else ()
        return InvertRun(
            command=context.command,
            source=loaded.describe(job.source),
            kernel=context.loaded.source,
            output=describe_output(job.target, prepared),
            notes=context.notes(loaded, prepared, *result.notes, *doubts),
            environment=environment_of(context.device, result.image.dtype, loaded.started),
            rerun=context.rerun(job, prepared, self._options(result, loaded.image)),
            reconstruction=result,
            diagnosis=diagnosis,
            factor=context.loaded.factor,
            lambda_views=views,
        )

    def _options(self, result: Reconstruction, image: ImageFile) -> OptionValues:
        """Give the options that make the same estimate again: what was resolved, not what was left open."""
        settings = result.settings
        options = settings.as_options()
        is_kept = self._extra.is_prediction_kept or "predict" in self._settings
        looks_at_noise = is_kept or (settings.objective == "tv" and settings.weight in (None, "auto"))
        if self._context.loaded.inverse is not None:
            kept: OptionValues = {"--max-memory": settings.max_memory, "--light": settings.light}
            of_noise = ("--noise-sigma", "--noise", "--quantization", "--seed")
            kept |= {name: options.get(name) for name in of_noise if is_kept}
            return kept | self._extra.as_options()
        dropped = {"--dimensions", "--lambda-rule", "--predict", "--method", "--tolerance", "--dtype"}
        dropped |= {"--defaults"} if (settings.defaults is InputKind.PICTURE) is image.is_picture else set()
        dropped |= set() if settings.has_lambda else {"--lambda", "--penalty"}
        dropped |= set() if looks_at_noise else {"--noise-sigma"}
        dropped |= set() if is_kept else {"--quantization", "--seed"}
        if "defaults" not in self._settings and options.get("--noise") == DEFAULTS[settings.defaults].noise:
            dropped.add("--noise")
        options = {name: value for name, value in options.items() if name not in dropped}
        if settings.has_lambda:
            # A single λ would restore together what was restored one by one, if by chance under the same.
            is_of_each = result.lambda_choice is not None or isinstance(self._settings.get("lam"), tuple)
            lams = tuple(part.settings.lam for part in result.channels) if is_of_each else ()
            options["--lambda"] = as_typed("lam", lams or result.lam)
            options["--method"] = result.choice.method
        elif settings.method != "auto":
            options["--method"] = settings.method
        if settings.objective == "tv":
            options.setdefault("--weight", "auto")
        if settings.tolerance is not None:  # left open, each channel has its solver's own
            options["--tolerance"] = repr(settings.tolerance)
        options["--dtype"] = str(result.image.dtype).removeprefix("torch.")
        predicts = {"--predict": True} if "predict" in self._settings and not self._extra.need_prediction else {}
        return options | layer_options(settings, self._settings) | predicts | self._extra.as_options()

    def _pipeline(self, kind: InputKind) -> Pipeline:
        """Give the pipeline of pictures or of tensors."""
        from deconv_cli.workflows.pipeline import Pipeline

        loaded = self._context.loaded
        with self._making:
            if kind not in self._pipelines:
                settings = ReconstructionSettings.of(**{"defaults": kind} | self._settings)
                if loaded.inverse is None:
                    settings = replace(settings, dimensions=loaded.kernel.n_axes)
                self._pipelines[kind] = Pipeline(loaded.taps, settings, bias=loaded.bias, inverse=loaded.inverse)
            return self._pipelines[kind]


def choose_kind(
    image: ImageFile, samples: Callable[[], Tensor], loaded: LoadedKernel, given: SettingValues
) -> tuple[InputKind, tuple[str, ...]]:
    """Choose the defaults of pictures or of tensors; says so where the samples decide, and not the format.

    Args:
        image: the file.
        samples: gives its samples or parts of them, shape `(*batch, *size)`.
        loaded: the kernel.
        given: the settings that were typed.
    """
    if image.is_picture:
        return InputKind.PICTURE, ()
    n_axes, is_formula = loaded.kernel.n_axes, loaded.source.sha256 is None and loaded.inverse is None
    is_decided = not {"defaults", "rcond"}.isdisjoint(given)
    if is_decided or not is_formula or n_axes < 2 or len(image.axes) > 3:
        return InputKind.TENSOR, ()
    from deconv_cli.diagnostics.hann_window import FadedImages
    from deconv_cli.diagnostics.noise_level import estimate_noise_of_blurred

    values = samples().float()
    noise = estimate_noise_of_blurred(FadedImages.of(values.reshape(-1, 1, *values.shape[-n_axes:]), n_axes))
    if noise is None or noise < NOTABLE_NOISE * values.std():
        return InputKind.TENSOR, ()
    why = f"since its samples are noisy (σ {noise:.3g}) and its kernel is a formula of optics"
    return InputKind.PICTURE, (f'the array was taken for a picture, {why}; defaults="tensor" takes it for a tensor',)


def _as_it_is(result: Reconstruction) -> Reconstruction:
    return result


def _would_be_cut(path: Path, image: ImageFile, loaded: LoadedKernel, settings: ReconstructionSettings) -> bool:
    """Tell of a picture whose format is read as a whole whether one of another would be restored in blocks."""
    from deconv_cli.io.regions.opening import is_read_by_parts

    is_given = loaded.inverse is None and loaded.source.estimate is None
    is_cuttable = loaded.kernel.field is None and settings.layer.is_plain and settings.rcond is None
    return image.is_picture and is_given and is_cuttable and not is_read_by_parts(path)


def with_spacing(resolution: Resolution, image: ImageFile) -> Resolution:
    """Take the distances of samples that a file tells, where they differ and differences are made."""
    settings, spacing = resolution.settings, image.spacing
    takes_differences = settings.penalty != "identity" if settings.has_lambda else settings.objective == "tv"
    if spacing is None or not takes_differences or max(spacing) <= (1 + SAME_SPACING) * min(spacing):
        return resolution
    relative = tuple(distance / min(spacing) for distance in spacing)
    note = (
        f"differences are taken per distance, since the file says that samples lie {format_spacing(spacing)} apart; "
        f"spacing={','.join('1' for _ in spacing)} takes all axes alike"
    )
    return replace(resolution, settings=replace(settings, spacing=relative), notes=(*resolution.notes, note))


def _measured(result: Reconstruction, loaded: LoadedInput, prepared: PreparedOutput) -> Reconstruction:
    """Measure what the range of the written samples does not hold of a picture; that of those read is measured."""
    import numpy as np

    from deconv_cli.workflows.trust import measure_clipping

    is_measured = prepared.dtype == loaded.image.dtype or not np.issubdtype(prepared.dtype, np.integer)
    if result.settings.defaults is not InputKind.PICTURE or is_measured:
        return result
    image, data, curve = result.image, loaded.values, result.tone_curve
    if curve is not None:  # in the dark a little light too few is many stored values
        image, data = curve.to_light(image), curve.to_light(data.to(image.dtype))
    limits = np.iinfo(prepared.dtype)
    return replace(result, clipping=measure_clipping(image, data, float(limits.min), float(limits.max)))


def recorded_convolution(
    image: ImageFile, kernel_sha256: str | None
) -> tuple[RecordedConvolution | None, tuple[str, ...]]:
    """Read what `deconv forward` wrote into a file about how it was made; nothing if somebody else wrote it.

    Args:
        image: the file.
        kernel_sha256: of the kernel that is to be undone, where it has one.

    Returns:
        What was found, and notes on what contradicts this run.
    """
    from deconv_cli.workflows.resolution import RecordedConvolution

    record = image.record
    if record is None or record.get("command") != "forward":
        return None, ()
    try:
        made_by = record["kernel"]
        light = Light(record.get("light", Light.STORED))  # before there was a choice
        boundary, padding = BOUNDARIES.check(record["boundary"]), parse_padding(record["padding"])
        layer, size = LayerOptions(**record.get("layer_options", {})), record.get("input_size")
        input_size = None if size is None else tuple(map(int, size))
        found = RecordedConvolution(boundary, padding, light, layer, input_size, record.get("tap"))
        sha256, named = str(made_by.get("sha256")), f", '{made_by['path']}'" if "path" in made_by else ""
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, ()
    if kernel_sha256 is None or sha256 == kernel_sha256:
        return found, ()
    return found, (
        f"deconv forward made this file with another kernel{named}; make sure that this one holds the same taps",
    )


def _doubt_alignment(context: Context, loaded: LoadedInput, result: Reconstruction) -> tuple[str, ...]:
    """Say so where a picture would rather have the kernel turned or scaled."""
    from deconv_cli.workflows.blind import check_alignment

    source, image = context.loaded.source, loaded.image
    is_single = (
        source.kernel.shared
        and source.kernel.n_axes == 2
        and source.kernel.field is None
        and source.estimate is None
        and context.loaded.inverse is None
    )
    if not (image.is_picture and is_single and len(image.values) == 1) or image.record is not None:
        return ()
    taps = source.kernel.taps[0, 0].cpu()
    doubt = check_alignment(taps, image.values[0], tone_curve=result.tone_curve, jpeg_table=image.jpeg_table)
    if doubt is None:
        return ()
    changes = ", ".join(doubt.orientation_changes)
    return (
        f"the picture looks as if the kernel should be {changes}, which is e^{doubt.evidence:.0f} times likelier; "
        "deconv kernel align writes the corrected one",
    )
