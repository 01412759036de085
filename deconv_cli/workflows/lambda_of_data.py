"""λ chosen from data: by frequency where one kernel made them, by probing for layers, at several places for fields."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.lambda_choice import LambdaChoice, choose_lambda
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings
from deconv_cli.vocabulary import LONG, LambdaRule, format_size
from deconv_cli.workflows.find_noise import model_of
from deconv_cli.workflows.kernel_fields import choose_lambda_of_field
from deconv_cli.workflows.layer_settings import choose_lambda_of_layer


def choose_lambda_of_data(
    y: Tensor,
    kernel: Kernel,
    settings: ResolvedSettings,
    least_sigma: float,
    is_clipped: Tensor | None = None,
    *,
    is_noise_even: bool = True,
) -> LambdaChoice:
    """Choose λ, by the rule of the settings.

    Args:
        y: shape `(C_out, *size)` or `(B, C_out, *size)`, without the bias, of the kernel's precision; detached.
        kernel: what made them.
        settings: what was resolved; their noise is a model of what the data have.
        least_sigma: an estimate of the noise is taken to be at least this, as that of rounding.
        is_clipped: which samples are no more than lower bounds, of the shape of `y`; a layer takes them for more.
        is_noise_even: it is taken to be as large in the dark as in the light.

    Raises:
        UsageError: the kernel is larger than the data along every axis.
    """
    if kernel.field is not None:
        return choose_lambda_of_field(
            kernel,
            y,
            settings,
            lambda piece, single, own, bounds: choose_lambda_of_data(
                piece, single, own, least_sigma, bounds, is_noise_even=is_noise_even
            ),
            is_clipped,
        )
    if not kernel.layer.is_plain:
        return choose_lambda_of_layer(kernel, y, settings, least_sigma)
    size = tuple(y.shape[-kernel.n_axes :])
    if all(n_taps > max(n, LONG) for n_taps, n in zip(kernel.size, size, strict=True)):
        raise UsageError(
            f"λ cannot be chosen from {format_size(size)} samples, since the kernel of {format_size(kernel.size)} "
            "taps is larger; give one, such as lam=1e-3."
        )
    continuation = Continuation(
        replace(kernel, taps=kernel.taps.detach()),
        size,
        boundary=settings.boundary,
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
        noise=model_of(settings),
    )
    rule = settings.lambda_rule or (LambdaRule.GCV if is_noise_even else None)
    return choose_lambda(continuation, y, is_clipped, rule=rule, sigma=settings.noise_sigma, least_sigma=least_sigma)
