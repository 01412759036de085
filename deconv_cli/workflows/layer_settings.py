"""What a layer with a stride, a dilation or groups asks of a pipeline: refusals, its λ, what its outputs leave open."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.probed_image_model import RandomImages, constant_part, fit_probed_image_model
from deconv_cli.diagnostics.probed_lambda import choose_lambda_by_probing
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import LayerOptions
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.operators.linear_operator import Identity, LinearOperator
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import LambdaRule, format_percent

ROUGH_LAMBDA, ROUGH_RULE = 1e-3, StoppingRule(tolerance=1e-2, max_iterations=30)
"""Of an estimate that shows how much the channels have in common."""


def check_settings_of_layer(settings: ReconstructionSettings, layer: LayerOptions) -> None:
    """Refuse what takes a torus of all pixels to be found from the data.

    Raises:
        UsageError: λ is to be chosen by whiteness or under colored noise, or the kind of the noise is to be found.
    """
    chooses = settings.lam == "auto" or settings.lambda_rule is not None
    asked = None
    if chooses and settings.lambda_rule is LambdaRule.WHITENESS:
        asked, instead = "λ is chosen by rule whiteness", "take another rule, or give a number for λ"
    elif settings.noise == "auto":
        asked, instead = "the kind of the noise is found", "take white noise"
    elif chooses and isinstance(settings.noise, NoiseModel) and not settings.noise.is_white:
        asked, instead = "λ is chosen under noise that is not white", "take white noise, or give a number for λ"
    if asked is not None:
        raise UsageError(
            f"{asked} for plain convolutions alone, but this layer is one with {layer.describe()}; {instead}."
        )


def choose_lambda_of_layer(kernel: Kernel, y: Tensor, settings: ResolvedSettings, least_sigma: float) -> LambdaChoice:
    """Choose λ from the data of a layer.

    Args:
        kernel: canonical kernel with the options of the layer.
        y: shape `(C_out, *size)` or `(B, C_out, *size)`, without the bias.
        settings: what was resolved.
        least_sigma: an estimate of the noise is taken to be at least this.
    """
    outputs = kernel.split(y, are_outputs=True)
    geometry = kernel.geometry_of_output(tuple(y.shape[-kernel.n_axes :]), settings.padding, settings.input_size)
    operator = kernel.detached().convolution(geometry, settings.boundary)
    assert isinstance(operator, LayerConvolution)
    penalty = spaced_penalty(settings.penalty, settings.spacing)
    probed: LinearOperator = operator
    data = outputs
    if penalty.takes_differences:
        # Of what the penalty leaves free, which are constants above all, the data say nothing about λ.
        probed = operator @ RandomImages.of_penalty(penalty, operator.input_shape, outputs)
        data = outputs - constant_part(operator, outputs)
    n_outputs, n_numbers = _counts(operator)
    return choose_lambda_by_probing(
        probed,
        data,
        operator.spectrum.sigma_max,
        rule=settings.lambda_rule,
        sigma=settings.noise_sigma,
        modeled_sigma=partial(_modeled_sigma, operator, outputs) if n_outputs < n_numbers else None,
        least_sigma=least_sigma,
    )


def _modeled_sigma(operator: LayerConvolution, outputs: Tensor) -> float:
    """Find the noise that makes the first image of a batch likeliest, as a model of images has it."""
    y = outputs.reshape(-1, *operator.output_shape)[0]
    weight = ROUGH_LAMBDA * operator.spectrum.sigma_max**2
    equations = NormalEquations(operator, y, Identity(operator.input_shape), weight)
    return fit_probed_image_model(operator, y, iterate(equations, ROUGH_RULE).value).sigma


def _counts(operator: LayerConvolution) -> tuple[int, int]:
    """Count the outputs, and the numbers of the image that they depend on."""
    n_numbers = operator.input_shape[0] * synchronize.as_index(operator.touched().sum())
    return operator.output_shape[0] * synchronize.as_index(operator.touched(of_inputs=False).sum()), n_numbers


def describe_undetermined(operator: LayerConvolution, lam: float) -> tuple[str, ...]:
    """Say which part of the input the outputs of a layer leave open, a sentence each; nothing where it is none.

    Args:
        operator: the layer.
        lam: λ.
    """
    touched, notes = operator.touched(), []
    in_frame = operator.crop_to_frame(touched)
    n_pixels, n_unused = in_frame.numel(), synchronize.as_index((~in_frame).sum())
    if n_unused:
        where = tuple(int(at) for at in (~in_frame).nonzero()[0])
        notes.append(
            f"no output depends on {format_percent(n_unused / n_pixels, 3)} of the pixels of the image, such as "
            f"{where}: the data say nothing about them, and they are zero in the estimate"
        )
    n_outputs, n_numbers = _counts(operator)
    if n_outputs < n_numbers:
        rest = "the penalty decides the rest" if lam > 0 else "the rest is that of the image of least norm"
        notes.append(
            f"{n_outputs} outputs determine at most {format_percent(n_outputs / n_numbers, 3)} of the {n_numbers} "
            f"numbers of the image that they depend on; {rest}"
        )
    return tuple(notes)
