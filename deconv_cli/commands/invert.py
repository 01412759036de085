"""`deconv invert`: undo a kernel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deconv_cli.commands import options
from deconv_cli.commands.batch import lay_out, refuse_to_replace, run
from deconv_cli.commands.beyond import BeyondOptions, GainOption, NonnegativeOption, PriorOption, WeightOption
from deconv_cli.commands.context import Context, FileOptions, KernelOptions
from deconv_cli.commands.factor_restorer import FactorRestorer, refuse_fixed
from deconv_cli.commands.kernel_restorer import InversionOptions, KernelRestorer
from deconv_cli.commands.prediction import PredictionOptions
from deconv_cli.commands.restorer import Restorer
from deconv_cli.commands.typed_options import was_typed
from deconv_cli.commands.views import Views
from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES, PENALTIES, method_names
from deconv_cli.vocabulary import DeviceChoice, LambdaRule, parse_lambda, parse_memory, parse_padding, parse_sigma

EXAMPLE = "Example: deconv invert sample_images/camera_blurred.png --kernel sample_images/motion.npy -o restored.tif"


def invert(
    invocation: typer.Context,
    inputs: options.InputsArgument,
    kernel: options.OptionalKernelOption = None,
    factor: Annotated[
        Path | None,
        typer.Option(
            "--factor",
            metavar="FILE",
            help="What deconv factor wrote, in place of --kernel and of all that was settled then.",
            show_default=False,
        ),
    ] = None,
    output: options.OutputOption = None,
    boundary: Annotated[
        str,
        typer.Option(
            "--boundary",
            **options.one_of("boundary", ("auto", *BOUNDARIES)),
            help="What lay outside. auto: what deconv forward recorded in the file; else unknown for pictures, "
            "zero for tensors.",
        ),
    ] = "auto",
    padding: Annotated[
        str | None,
        typer.Option(
            "--padding",
            metavar="same|valid|full|N|NH,NW",
            help="How far the kernel reached outside. Default: what deconv forward recorded, else same.",
            show_default=False,
        ),
    ] = None,
    lam: Annotated[
        str | None,
        typer.Option(
            "--lambda",
            metavar="auto|λ",
            help="Weight of the penalty, in units of σ²max; 0 for the pseudo-inverse; auto to choose it from the data. "
            "Default: auto for pictures, 1e-6 for tensors.",
            show_default=False,
        ),
    ] = None,
    lambda_rule: Annotated[
        LambdaRule | None,
        typer.Option("--lambda-rule", help="How auto chooses. Default: gcv.", show_default=False),
    ] = None,
    noise_sigma: Annotated[
        str,
        typer.Option(
            "--noise-sigma",
            metavar="auto|σ",
            help="Standard deviation of the noise, in units of the samples; auto to estimate it.",
        ),
    ] = "auto",
    penalty: Annotated[
        str | None,
        typer.Option(
            "--penalty",
            **options.one_of("penalty", PENALTIES),
            help="What is kept small. Default: gradient for pictures, identity for tensors.",
            show_default=False,
        ),
    ] = None,
    rcond: Annotated[
        float | None,
        typer.Option(
            "--rcond",
            help="Drop singular values up to this fraction of the largest (boundary circular; λ is then 0).",
            show_default=False,
        ),
    ] = None,
    nonnegative: NonnegativeOption = False,
    prior: PriorOption = "quadratic",
    weight: WeightOption = None,
    method: Annotated[
        str, typer.Option("--method", **options.one_of("method", method_names()), help="How to solve.")
    ] = "auto",
    gain: GainOption = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Certificate at which an iteration stops. Default: 1e-6 in float32, 1e-10 in float64; 1e-4 and "
            "1e-6 for prior tv, 1e-5 for richardson-lucy.",
            show_default=False,
        ),
    ] = None,
    max_iterations: Annotated[int, typer.Option("--max-iterations", help="Iterations at most.", min=1)] = 2000,
    max_memory: options.MaxMemoryOption = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="FILE",
            help="The true image, to hold the estimate and its predicted error against.",
            show_default=False,
        ),
    ] = None,
    error_map: Annotated[
        Path | None,
        typer.Option(
            "--error-map", metavar="FILE", help="Write the predicted error of every pixel.", show_default=False
        ),
    ] = None,
    trust_mask: Annotated[
        Path | None,
        typer.Option(
            "--trust-mask",
            metavar="FILE",
            help="Write where the border adds little to the error: 255 there, 0 elsewhere.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of what the predicted error draws.", min=0)] = 0,
    layer: options.LayerOption = None,
    convention: options.ConventionOption = None,
    normalize: options.NormalizeOption = None,
    axes: options.AxesOption = None,
    tensor: options.TensorOption = None,
    series: options.SeriesOption = None,
    output_dtype: options.OutputDTypeOption = None,
    dtype: options.DTypeOption = None,
    device: options.DeviceOption = DeviceChoice.AUTO,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write a page that shows what was done, with which λ and why, and where to trust the result.",
            show_default=False,
        ),
    ] = None,
    show: options.ShowOption = False,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Restore images from what a kernel made of them, and report how far to trust the result."""
    n_bytes = None if max_memory is None else parse_memory(max_memory)
    files = FileOptions(axes, tensor, series, output_dtype, force)
    sigma = parse_sigma(noise_sigma)
    beyond = BeyondOptions.parse(nonnegative, prior, weight, gain, sigma)
    if factor is not None:
        beyond.refuse_with_factor()
        refuse_fixed(invocation)
    elif kernel is None:
        raise UsageError(
            "deconv invert needs the kernel, --kernel FILE, or what deconv factor made of it, --factor FILE."
        )
    settings = InversionOptions(
        padding=None if padding is None else parse_padding(padding),
        boundary=boundary,
        lam=None if lam is None else parse_lambda(lam),
        lambda_rule=lambda_rule,
        noise_sigma=sigma,
        penalty=penalty,
        rcond=rcond,
        method=method,
        tolerance=tolerance,
        max_iterations=max_iterations,
        max_memory=n_bytes,
        verbose=verbose,
        quiet=quiet,
        beyond=beyond,
    )
    jobs = lay_out(inputs, output, ending="_restored")
    views = Views(report, force, show)
    views.check(jobs)
    prediction = PredictionOptions(truth, error_map, trust_mask, sigma, seed, is_for_page=report is not None)
    prediction.check(len(jobs))
    if was_typed(invocation, "seed") and not prediction.is_asked_for:
        raise UsageError(
            "--seed draws images to predict the error with, which nothing asks for; leave it out, or add --trust-mask, "
            "--error-map, --truth or --report."
        )
    refuse_to_replace(factor or kernel, [job.target for job in jobs] + prediction.outputs + views.outputs)
    restorer: Restorer
    if factor is not None:
        context, opened = Context.open_factor("invert", factor, files, device, n_bytes)
        restorer = FactorRestorer(context, opened, prediction, n_bytes, verbose=verbose, quiet=quiet)
    else:
        assert kernel is not None
        kernel_options = KernelOptions(kernel, layer, convention, normalize)
        restorer = KernelRestorer(Context.open("invert", kernel_options, files, device, dtype), settings, prediction)
    run("invert", jobs, partial(restorer.restore, views=views), as_json=as_json, quiet=quiet)
