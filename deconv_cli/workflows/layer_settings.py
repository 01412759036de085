"""What a layer with a stride, a dilation or groups asks of a pipeline: refusals, and what its outputs leave open."""

from __future__ import annotations

from deconv_cli.errors import UsageError
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators import synchronize
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.settings import ReconstructionSettings


def check_settings_of_layer(settings: ReconstructionSettings, layer: LayerOptions) -> None:
    """Refuse what is known of plain convolutions alone.

    Raises:
        UsageError: another prior than the quadratic one, or λ, the noise or the error are to be found from the data.
    """
    asked = None
    if not settings.is_linear:
        asked = f"prior {settings.objective} is"
    elif settings.lam == "auto" or settings.lambda_rule is not None:
        asked = "λ is chosen from the data"
    elif settings.noise == "auto":
        asked = "the kind of the noise is found"
    elif settings.predict:
        asked = "the error is predicted, and compared with a truth,"
    if asked is not None:
        raise UsageError(
            f"{asked} for plain convolutions alone, but this layer is one with {layer.describe()}; leave that out, or "
            "give a number for λ."
        )


def describe_unseen(operator: LayerConvolution, lam: float) -> tuple[str, ...]:
    """Say which part of the input the outputs of a layer leave open, a sentence each; nothing where it is none.

    Args:
        operator: the layer.
        lam: λ.
    """
    touched, notes = operator.touched(), []
    in_frame = operator.crop_to_frame(touched)
    n_pixels, n_unseen = in_frame.numel(), synchronize.as_index((~in_frame).sum())
    if n_unseen:
        where = tuple(int(at) for at in (~in_frame).nonzero()[0])
        notes.append(
            f"no output depends on {_percent(n_unseen / n_pixels)} of the pixels of the image, such as {where}: the "
            "data say nothing about them, and they are zero in the estimate"
        )
    n_numbers = operator.input_shape[0] * synchronize.as_index(touched.sum())
    n_outputs = operator.output_shape[0] * synchronize.as_index(operator.touched(of_inputs=False).sum())
    if n_outputs < n_numbers:
        rest = "the penalty decides the rest" if lam > 0 else "the rest is that of the image of least norm"
        notes.append(
            f"{n_outputs} outputs determine at most {_percent(n_outputs / n_numbers)} of the {n_numbers} numbers of "
            f"the image that they depend on; {rest}"
        )
    return tuple(notes)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
