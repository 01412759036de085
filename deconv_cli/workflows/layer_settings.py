"""Settings that fields of kernels and layers refuse, and what the outputs of a layer leave undetermined."""

from __future__ import annotations

from deconv_cli.errors import UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.noise_model import NoiseModel
from deconv_cli.operators import synchronize
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import LambdaRule, format_percent


def check_settings_of_field(settings: ReconstructionSettings) -> None:
    """Refuse, by `UsageError`, to predict the error."""
    if settings.predict:
        raise UsageError(
            "the error is predicted, and compared with a truth, only for a single kernel, but this one varies over "
            "the frame; leave that out, or take the kernel of one place."
        )


def check_settings_of_layer(settings: ReconstructionSettings, layer: LayerOptions) -> None:
    """Refuse, by `UsageError`, a choice of λ or of the noise that needs a torus of all pixels."""
    chooses = settings.lam == "auto" or settings.lambda_rule is not None
    needed = None
    if chooses and settings.lambda_rule is LambdaRule.WHITENESS:
        needed, instead = "λ is chosen by rule whiteness", "take another rule, or give a number for λ"
    elif settings.noise == "auto":
        needed, instead = "the kind of the noise is found", "take white noise"
    elif chooses and isinstance(settings.noise, NoiseModel) and not settings.noise.is_white:
        needed, instead = "λ is chosen under noise that is not white", "take white noise, or give a number for λ"
    if needed is not None:
        raise UsageError(f"{needed} only for plain convolutions, but this layer has {layer.describe()}; {instead}.")


def count_numbers(operator: LayerConvolution) -> tuple[int, int]:
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
    n_outputs, n_numbers = count_numbers(operator)
    if n_outputs < n_numbers:
        rest = "the penalty decides the rest" if lam > 0 else "the rest is that of the image of least norm"
        notes.append(
            f"{n_outputs} outputs determine at most {format_percent(n_outputs / n_numbers, 3)} of the {n_numbers} "
            f"numbers of the image that they depend on; {rest}"
        )
    return tuple(notes)
