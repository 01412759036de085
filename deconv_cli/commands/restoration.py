"""Restore one file that was read: resolve its settings, reconstruct it, write the result, and describe it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deconv_cli.allocator import return_freed_memory
from deconv_cli.commands.context import Context, ExtraOutputs
from deconv_cli.commands.option_groups import OptionValues, PrintOptions
from deconv_cli.commands.parallel import Job, JobResult, LoadedFile
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.settings_options import SettingValues, layer_options
from deconv_cli.commands.summary import print_invert_summary
from deconv_cli.errors import TooLargeError
from deconv_cli.settings import ReconstructionSettings, as_typed
from deconv_cli.vocabulary import InputKind

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.io import ImageFile, PreparedOutput
    from deconv_cli.workflows.lambda_series import LambdaView
    from deconv_cli.workflows.pipeline import Pipeline
    from deconv_cli.workflows.reconstruction import Reconstruction
    from deconv_cli.workflows.resolve_settings import InputMetadata

N_ALIGNED = 3
"""The alignment of the kernel is tested on this many first inputs of a run: a test takes longer than restoring."""
NOTABLE_NOISE = 1e-3
"""Noise in standard deviations of an array from which on it spoils estimates under the λ of tensors."""


class Restoration:
    """Restores one input after another with one kernel; pictures share one pipeline, and tensors share one."""

    def __init__(
        self,
        context: Context,
        kernel: LoadedKernel,
        settings: SettingValues,
        extra: ExtraOutputs,
        printed: PrintOptions,
    ) -> None:
        self._context, self._kernel, self._settings = context, kernel, settings
        self._extra, self._printed = extra, printed
        self._pipelines: dict[InputKind, Pipeline] = {}
        self._making = threading.Lock()

    def restore(self, job: Job, source: LoadedFile, progress: WorkProgress) -> JobResult:
        """Reconstruct one input, write the result, and describe it."""
        from deconv_cli.report.run import InvertRun
        from deconv_cli.report.run_record import describe_found, describe_run

        started, context, kernel = source.started(), self._context, self._kernel
        image = context.move(kernel.arrange(source.image))
        kernel.refuse_for(image, tuple(image.values.shape[2:]))
        kind, notes = choose_kind(image, lambda: image.values, kernel, self._settings)
        if (image.record or {}).get("command") == "invert":
            notes += ("the input was written by deconv invert, so it is restored a second time",)
        pipeline = self._pipeline(kind)
        resolution = pipeline.resolve(self._metadata(image))
        tests_alignment = resolution.tests_alignment and job.number <= N_ALIGNED and kernel.source.estimate is None
        resolution = replace(resolution, notes=(*notes, *resolution.notes), tests_alignment=tests_alignment)
        n_channels = image.values.shape[1]
        if not resolution.is_per_channel:
            n_channels = kernel.kernel.with_layer(resolution.settings.layer).n_inputs(n_channels)
        same_size = kernel.keeps_size(resolution.settings.padding, resolution.settings.layer)
        plan = context.plan(job, image, n_channels, same_size=same_size)
        planned = self._extra.plan(image, n_channels, same_size=same_size, force=context.files.force)
        try:
            result = pipeline.reconstruct(image.values, resolution, truth=planned.truth, progress=progress)
        except TooLargeError as error:
            if not _would_be_cut(job.source, image, kernel, resolution.settings):
                raise
            copy = "a TIFF (.tif) or Zarr (.zarr) copy, which is restored block by block"
            raise TooLargeError(f"{str(error).removesuffix('.')}, or {copy}.") from error
        diagnosis = None
        views: tuple[LambdaView, ...] = ()
        if planned.page is not None:
            progress.begin("examining the result")
            diagnosis = pipeline.diagnose(result, image.values)
            views = pipeline.vary_lambda(result, image.values, image.dtype)
        return_freed_memory()
        prepared = plan.prepare(result.image.cpu())
        return_freed_memory()
        result = _measured(result, image, prepared, planned.truth)
        found: tuple[str, ...] = ()
        if (estimate := kernel.source.estimate) is not None:
            result = replace(result, kernel_doubt=estimate.doubt)
            estimate = estimate if result.is_trusted else estimate.without_errors()
            kernel = replace(kernel, source=replace(kernel.source, estimate=estimate))
            found = (f"the kernel was found in the picture: {describe_found(estimate)}",)
        options = kernel.options | self._options(result, image)
        run = InvertRun(
            command=context.command,
            kernel=kernel.source,
            notes=found + kernel.notes_on(image, prepared, *result.notes, *self._extra.notes(result.settings)),
            rerun=context.rerun(job.source, options, job.target, prepared.dtype),
            reconstruction=result,
            diagnosis=diagnosis,
            factor=kernel.factor,
            lambda_views=views,
            **context.describe(job, image, prepared, result.image.dtype, started),
        )
        record = describe_run(run)
        return_freed_memory()
        prepared.write(record)
        return_freed_memory()
        planned.write(run, record, image.values)
        return JobResult(
            job,
            record,
            partial(print_invert_summary, run, verbose=self._printed.verbose),
            doubts=tuple(doubt.sentence for doubt in result.doubts),
            warnings=result.cautions,
        )

    def _metadata(self, image: ImageFile) -> InputMetadata:
        """Collect the records in the files of an input and of the kernel."""
        from deconv_cli.workflows.resolve_settings import InputMetadata

        return InputMetadata(
            record=image.record,
            recorded=self._kernel.recorded,
            kernel_sha256=self._kernel.source.sha256,
            tone_curve=image.tone_curve,
            sample_type=image.dtype,
            spacing=image.spacing,
            jpeg_table=image.jpeg_table,
        )

    def _options(self, result: Reconstruction, image: ImageFile) -> OptionValues:
        """Return the options that make the same estimate again, with the resolved settings."""
        from deconv_cli.workflows.resolve_settings import default_noise

        settings = result.settings
        options = settings.as_options()
        is_kept = self._extra.is_prediction_kept or "predict" in self._settings
        looks_at_noise = is_kept or (settings.objective == "tv" and settings.weight in (None, "auto"))
        if self._kernel.inverse is not None:
            kept: OptionValues = {"--max-memory": settings.max_memory, "--light": settings.light}
            of_noise = ("--noise-sigma", "--noise", "--quantization", "--seed")
            kept |= {name: options.get(name) for name in of_noise if is_kept}
            return kept | self._extra.as_options()
        dropped = {"--dimensions", "--lambda-rule", "--predict", "--method", "--tolerance", "--dtype"}
        dropped |= {"--defaults"} if (settings.defaults is InputKind.PICTURE) is image.is_picture else set()
        dropped |= set() if settings.has_lambda else {"--lambda", "--penalty"}
        dropped |= set() if looks_at_noise else {"--noise-sigma"}
        dropped |= set() if is_kept else {"--quantization", "--seed"}
        if "defaults" not in self._settings and options.get("--noise") == default_noise(settings.defaults):
            dropped.add("--noise")
        options = {name: value for name, value in options.items() if name not in dropped}
        if settings.has_lambda:
            # Channels that were restored one by one keep a λ for each, even if all are equal.
            is_of_each = result.lambda_choice is not None or isinstance(self._settings.get("lam"), tuple)
            lams = tuple(part.settings.lam for part in result.channels) if is_of_each else ()
            options["--lambda"] = as_typed("lam", lams or result.lam)
            options["--method"] = result.choice.method
        elif settings.method != "auto":
            options["--method"] = settings.method
        if settings.objective == "tv":
            options.setdefault("--weight", "auto")
        if settings.tolerance is not None:  # otherwise each channel has its solver's own
            options["--tolerance"] = repr(settings.tolerance)
        options["--dtype"] = str(result.image.dtype).removeprefix("torch.")
        is_implied = self._extra.need_prediction(settings)
        predicts = {"--predict": True} if "predict" in self._settings and not is_implied else {}
        return options | layer_options(settings, self._settings) | predicts | self._extra.as_options()

    def _pipeline(self, kind: InputKind) -> Pipeline:
        """Return the pipeline of pictures or of tensors."""
        from deconv_cli.workflows.pipeline import Pipeline

        loaded = self._kernel
        with self._making:
            if kind not in self._pipelines:
                known = {} if loaded.inverse is not None else {"dimensions": loaded.kernel.n_axes}
                settings = ReconstructionSettings.trusted(**{"defaults": kind} | self._settings | known)
                self._pipelines[kind] = Pipeline(loaded.taps, settings, bias=loaded.bias, inverse=loaded.inverse)
            return self._pipelines[kind]


def choose_kind(
    image: ImageFile, samples: Callable[[], Tensor], loaded: LoadedKernel, given: SettingValues
) -> tuple[InputKind, tuple[str, ...]]:
    """Choose the defaults of pictures or of tensors, with a note if the samples decide and not the format.

    Args:
        image: the file.
        samples: reads all samples, or parts of them, shape `(*batch, *size)`.
        loaded: the kernel.
        given: the typed settings.
    """
    if image.is_picture:
        return InputKind.PICTURE, ()
    n_axes, is_formula = loaded.kernel.n_axes, loaded.source.sha256 is None and loaded.inverse is None
    is_decided = not {"defaults", "rcond"}.isdisjoint(given)
    if is_decided or not is_formula or n_axes < 2 or len(image.axes) > 3:
        return InputKind.TENSOR, ()
    from deconv_cli.diagnostics.noise_level import estimate_noise_of_blurred
    from deconv_cli.diagnostics.spectra import FadedImages

    values = samples().float()
    noise = estimate_noise_of_blurred(FadedImages.of(values.reshape(-1, 1, *values.shape[-n_axes:]), n_axes))
    if noise is None or noise < NOTABLE_NOISE * values.std():
        return InputKind.TENSOR, ()
    why = f"since its samples are noisy (σ {noise:.3g}) and its kernel is computed from the optics"
    return InputKind.PICTURE, (f'the array is treated as a picture, {why}; defaults="tensor" treats it as a tensor',)


def _would_be_cut(path: Path, image: ImageFile, loaded: LoadedKernel, settings: ReconstructionSettings) -> bool:
    """Return whether a picture that is read as a whole would be restored in blocks in another format."""
    from deconv_cli.io.regions import is_read_by_parts

    is_given = loaded.inverse is None and loaded.source.estimate is None
    is_cuttable = loaded.kernel.field is None and settings.layer.is_plain and settings.rcond is None
    is_cuttable = is_cuttable and settings.prior != "tv" and settings.boundary != "circular"
    return image.is_picture and is_given and is_cuttable and not is_read_by_parts(path)


def _measured(
    result: Reconstruction, file: ImageFile, prepared: PreparedOutput, truth: Tensor | None
) -> Reconstruction:
    """Compare written whole numbers with the truth, and measure how much of a picture their type cannot hold."""
    import numpy as np

    from deconv_cli.workflows.trust import measure_clipping

    if not np.issubdtype(prepared.dtype, np.integer):
        return result
    limits = np.iinfo(prepared.dtype)
    result = result.compared_with(truth, result.image.detach().cpu().double().round().clamp(limits.min, limits.max))
    if result.settings.defaults is not InputKind.PICTURE or prepared.dtype == file.dtype:
        return result
    image, data, curve = result.image, file.values, result.tone_curve
    if curve is not None:  # in the dark a little light too few is many stored values
        image, data = curve.to_light(image), curve.to_light(data.to(image.dtype))
    ends = float(limits.min), float(limits.max)
    settings = result.settings
    clipping = measure_clipping(image, data, *ends, n_axes=settings.dimensions or 2, noise=settings.noise_sigma)
    return replace(result, clipping=clipping)
