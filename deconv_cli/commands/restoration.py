"""Restore one file that was read: resolve its settings, reconstruct it, write the result, and describe it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deconv_cli.allocator import return_freed_memory
from deconv_cli.commands.invert_options import InvertOptions
from deconv_cli.commands.option_groups import OptionValues
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.settings_options import SettingValues, layer_options
from deconv_cli.commands.summary import print_invert_summary
from deconv_cli.commands.work import Job, JobResult
from deconv_cli.errors import UsageError
from deconv_cli.schedulers.scheduler import announce_writing
from deconv_cli.settings import Auto, ReconstructionSettings
from deconv_cli.vocabulary import Convention, InputKind, as_typed

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.commands.loaded_kernel import LoadedKernel
    from deconv_cli.io import ImageFile, PreparedOutput
    from deconv_cli.workflows.lambda_series import LambdaView
    from deconv_cli.workflows.pipeline import Pipeline
    from deconv_cli.workflows.reconstruction import Reconstruction
    from deconv_cli.workflows.resolve_settings import InputMetadata

NOTABLE_NOISE = 1e-3
"""Noise in standard deviations of an array from which on it spoils estimates under the λ of tensors."""
SHORT, NOTABLE_IN_SHORT = 1024, 0.03
"""In a signal of at most this many samples, noise may look like detail; the noise from which on it counts there."""
SAME_GAIN = 2.0
"""Factor up to which the gain that samples show may differ from that of a header. Of simulated counts it is 0.95 to 1.3
of the true one, and up to 2.5 if the picture has more detail than noise."""
N_ALIGNED = 3
"""The alignment of the kernel is tested on this many first inputs of a run: a test takes longer than restoring."""


_MAKING = threading.Lock()
"""Held by the thread that makes a pipeline, so that all share it."""


def restore_whole(
    work: InvertOptions, kernel: LoadedKernel, job: Job, source: ImageFile, progress: WorkProgress
) -> JobResult:
    """Reconstruct one input, write the result, and describe it."""
    from deconv_cli.report.run import InvertRun, describe_found, describe_run
    from deconv_cli.workflows.trust import Doubt, DoubtReason

    extra, given = work.extra, work.settings
    image = work.move(kernel.arrange(source))
    kernel.refuse_for(image, tuple(image.values.shape[2:]))
    kind, notes = choose_kind(image, lambda: image.values, kernel, given)
    if (image.record or {}).get("command") == "invert":
        notes += ("the input was written by deconv invert, so it is restored a second time",)
    pipeline = _pipeline(kernel, kind, given)
    resolution = pipeline.resolve(_metadata(kernel, image))
    if extra.needs_map and not resolution.settings.predict:
        raise UsageError(
            "--error-map and --trust-mask show an error that is predicted only for plain convolutions, but this "
            f"layer has {resolution.settings.layer.describe()}; leave them out."
        )
    gain, of_gain = _gain(image, resolution.settings.gain, kernel.kernel.n_axes)
    resolution, notes = replace(resolution, settings=replace(resolution.settings, gain=gain)), notes + of_gain
    tests_alignment = resolution.tests_alignment and job.number <= N_ALIGNED and kernel.source.estimate is None
    resolution = replace(resolution, notes=(*notes, *resolution.notes), tests_alignment=tests_alignment)
    n_channels = image.values.shape[1]
    layer = kernel.kernel.with_layer(resolution.settings.layer)
    pipeline.check_channels(image.values, layer, resolution)  # before the output, which may hold no such image
    if not resolution.is_per_channel:
        n_channels = layer.n_inputs(n_channels)
    plan = work.plan(job, image, n_channels)
    planned = extra.plan(image, n_channels, force=work.files.force)
    result = pipeline.reconstruct(image.values, resolution, truth=planned.truth, progress=progress)
    diagnosis = None
    views: tuple[LambdaView, ...] = ()
    if planned.page is not None:
        progress.begin("examining the result")
        diagnosis = pipeline.diagnose(result, image.values)
        views = pipeline.vary_lambda(result, image.values, image.dtype)
        result = replace(result, noise_found=diagnosis.tests.noise)
    return_freed_memory()
    prepared = plan.prepare(result.image.cpu())
    return_freed_memory()
    result = _measured(result, image, prepared, planned.truth)
    found: tuple[str, ...] = ()
    if (estimate := kernel.source.estimate) is not None:
        if estimate.doubt is not None:
            result = replace(result, kernel_doubt=Doubt(DoubtReason.KERNEL, estimate.doubt))
        estimate = estimate if result.is_trusted else estimate.without_errors()
        kernel = replace(kernel, source=replace(kernel.source, estimate=estimate))
        found = (f"the kernel was found in the picture: {describe_found(estimate)}",)
    options = kernel.options | _options(work, result, image)
    run = InvertRun(
        command=work.command,
        kernel=kernel.source,
        notes=found + kernel.notes_on(image, prepared, *result.notes, *extra.notes(result.settings)),
        rerun=work.rerun(job.source, options, job.target, prepared.dtype),
        reconstruction=result,
        diagnosis=diagnosis,
        lambda_views=views,
        **work.describe(job, image, prepared, result.image.dtype, progress.started),
    )
    record = describe_run(run)
    return_freed_memory()
    announce_writing()
    prepared.write(record)
    return_freed_memory()
    planned.write(run, record, image.values)
    return JobResult(record, partial(print_invert_summary, run, verbose=work.printed.verbose))


def _gain(image: ImageFile, given: float | Auto | None, n_axes: int) -> tuple[float | Auto | None, tuple[str, ...]]:
    """Return the gain for Richardson–Lucy, with a note on the header's.

    That of the header replaces `auto` if the samples show it up to `SAME_GAIN`: detail raises their estimate.
    """
    from deconv_cli.diagnostics.noise_level import estimate_gain
    from deconv_cli.io.metadata import header_number

    electrons = header_number(image.native_fields, "GAIN", "EGAIN")
    if given is None or electrons is None or (given != "auto" and math.isclose(given * electrons, 1, rel_tol=0.01)):
        return given, ()
    note = f"the header says {electrons:g} electrons for each unit, which is gain={1 / electrons:.4g}"
    if given != "auto":
        return given, (note,)
    found = estimate_gain(image.values, n_axes)
    if found is not None and abs(math.log(found * electrons)) <= math.log(SAME_GAIN):
        return 1 / electrons, (f"{note}; it is used, since the data show about the same, {found:.4g}",)
    shown = "do not show a gain" if found is None else f"show {found:.4g}"
    return given, (f"{note}; it is not used, since the data {shown}",)


def _metadata(kernel: LoadedKernel, image: ImageFile) -> InputMetadata:
    """Collect the records in the files of an input and of the kernel."""
    from deconv_cli.io.metadata import header_number
    from deconv_cli.workflows.resolve_settings import InputMetadata

    return InputMetadata(
        record=image.record,
        recorded=kernel.recorded,
        kernel_sha256=kernel.source.sha256,
        tone_curve=image.tone_curve,
        sample_type=image.dtype,
        spacing=image.spacing,
        jpeg_table=image.jpeg_table,
        saturation=header_number(image.native_fields, "SATURATE"),
    )


def _options(work: InvertOptions, result: Reconstruction, image: ImageFile) -> OptionValues:
    """Return the options that make the same estimate again, with the resolved settings."""
    from deconv_cli.workflows.resolve_settings import default_noise

    settings, given = result.settings, work.settings
    options = settings.as_options()
    is_kept = bool(work.extra.kept_options) or "predict" in given
    looks_at_noise = is_kept or (settings.objective == "tv" and settings.weight in (None, "auto"))
    set_elsewhere = {"--dimensions", "--lambda-rule", "--predict", "--method", "--tolerance", "--dtype"}
    is_needless = {
        "--defaults": "defaults" not in given and (settings.defaults is InputKind.PICTURE) is image.is_picture,
        "--lambda": not settings.has_lambda,
        "--penalty": not settings.has_lambda,
        "--noise-sigma": not looks_at_noise,
        "--seed": not is_kept,
        "--noise": "defaults" not in given and options.get("--noise") == default_noise(settings.defaults),
    }
    options = {name: v for name, v in options.items() if name not in set_elsewhere and not is_needless.get(name)}
    if settings.has_lambda:
        # Channels that were restored one by one keep a λ for each, even if all are equal.
        is_of_each = result.lambda_choice is not None or isinstance(given.get("lam"), tuple)
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
    is_implied = work.extra.need_prediction(settings)
    predicts = {"--predict": True} if "predict" in given and not is_implied else {}
    return options | layer_options(settings, given) | predicts | work.extra.kept_options


def _pipeline(kernel: LoadedKernel, kind: InputKind | None, given: SettingValues) -> Pipeline:
    """Return the pipeline of pictures or of tensors with this kernel."""
    from deconv_cli.workflows.pipeline import Pipeline

    with _MAKING:
        if kind not in kernel.pipelines:
            settings = ReconstructionSettings.trusted(
                **{"defaults": kind} | given | {"dimensions": kernel.kernel.n_axes}
            )
            kernel.pipelines[kind] = Pipeline(kernel.taps, settings, bias=kernel.bias)
        return kernel.pipelines[kind]


def _measured(
    result: Reconstruction, file: ImageFile, prepared: PreparedOutput, truth: Tensor | None
) -> Reconstruction:
    """Compare written whole numbers with the truth, and measure how much of a picture their type cannot hold."""
    import numpy as np

    from deconv_cli.workflows.trust import measure_clipping

    if not np.issubdtype(prepared.dtype, np.integer):
        return result
    limits = np.iinfo(prepared.dtype)
    if truth is not None:
        written = result.image.detach().cpu().double().round().clamp(limits.min, limits.max)
        result = result.compared_with(truth, written)
    if result.settings.defaults is not InputKind.PICTURE or prepared.dtype == file.dtype:
        return result
    image, data, curve = result.image, file.values, result.tone_curve
    if curve is not None:  # in the dark a little light too few is many stored values
        image, data = curve.to_light(image), curve.to_light(data.to(image.dtype))
    ends = float(limits.min), float(limits.max)
    settings = result.settings
    clipping = measure_clipping(image, data, *ends, n_axes=settings.dimensions or 2, noise=settings.noise_sigma)
    return replace(result, clipping=clipping)


def choose_kind(
    image: ImageFile, samples: Callable[[], Tensor], loaded: LoadedKernel, given: SettingValues
) -> tuple[InputKind | None, tuple[str, ...]]:
    """Choose the defaults of pictures, with a note if the samples decide and not the format; `None` leaves them open.

    Args:
        image: the file.
        samples: reads all samples, or parts of them, shape `(*batch, *size)`.
        loaded: the kernel.
        given: the typed settings.
    """
    if image.is_picture:
        return InputKind.PICTURE, ()
    from deconv_cli.workflows.resolve_settings import AS_TENSOR

    n_axes, source = loaded.kernel.n_axes, loaded.source
    is_formula, is_point = source.sha256 is None, source.convention is Convention.CONVOLUTION
    is_decided = "defaults" in given or given.get("method") == "richardson-lucy"
    if is_decided or not (is_formula or is_point) or len(image.axes) > 3:
        return None, ()
    what = "signal that was measured" if n_axes == 1 else "picture"
    note = f"the array is treated as a {what}, since {{}}; {AS_TENSOR}"
    why = f"its kernel is a {'formula' if is_formula else 'picture of a point'}"
    if image.record is None:
        return InputKind.PICTURE, (note.format(why),)
    from deconv_cli.diagnostics.noise_level import estimate_noise_of_blurred, finest_level
    from deconv_cli.diagnostics.spectra import FadedImages

    values = samples().float()
    faded, notable = FadedImages.of(values.reshape(-1, 1, *values.shape[-n_axes:]), n_axes), NOTABLE_NOISE
    noise = estimate_noise_of_blurred(faded)
    if noise is None and n_axes == 1 and values.shape[-1] <= SHORT:
        noise, notable = finest_level(faded), NOTABLE_IN_SHORT
    if noise is None or noise < notable * values.std():
        return None, ()
    return InputKind.PICTURE, (note.format(f"its samples are noisy (σ {noise:.3g}) and {why}"),)
