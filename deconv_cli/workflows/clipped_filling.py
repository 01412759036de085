"""Data whose clipped samples are replaced by what a first estimate predicts, for a fit of the noise.

Where light is cut off the data have creases, which no blur makes, and which look like noise.
"""

from __future__ import annotations

from torch import Tensor

from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.regularizers import spaced_penalty
from deconv_cli.settings import ResolvedSettings


def fill_clipped(
    y: Tensor, kernel: Kernel, settings: ResolvedSettings, is_clipped: Tensor | None
) -> tuple[Tensor, float]:
    """Replace clipped samples that an estimate exceeds, its λ chosen as for white noise.

    Args:
        y: shape `(C_out, *size)` or `(B, C_out, *size)`, without the bias, of the kernel's precision, without a graph.
        kernel: what made them.
        settings: what was resolved.
        is_clipped: which samples are lower bounds, of the shape of `y`; none where it is left out.

    Returns:
        Data of the shape of `y`, filled in the middle, which is looked at; and the part of that that is as it was.
    """
    if is_clipped is None or kernel.field is not None:
        return y, 1.0
    continuation = Continuation(
        kernel,
        tuple(y.shape[-kernel.n_axes :]),
        boundary="unknown",
        penalty=spaced_penalty(settings.penalty, settings.spacing),
        max_memory=settings.max_memory,
    )
    lam = choose_lambda(continuation, y, is_clipped).lam
    return continuation.fill(y, lam, is_clipped)
