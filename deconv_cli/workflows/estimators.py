"""Build what estimates the images where that is not a linear inverse, with what it needs to know of the noise."""

from __future__ import annotations

from torch import Tensor

from deconv_cli.diagnostics.gain import estimate_gain
from deconv_cli.diagnostics.noise_level import estimate_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.noise_model import NoiseModel
from deconv_cli.parts import PRIORS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.prior import DataEstimate, Prior
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.variation_weight import find_variation_weight


def build_estimator(kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor) -> Estimator:
    """Build what minimizes the objective of the settings, which is not the quadratic one.

    Args:
        kernel: canonical kernel, in the precision of the arithmetic.
        image_size: height and width of the images that are wanted back.
        settings: what was resolved; their noise is a model of what the data have.
        y: the outputs, less a bias, shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`: what the prior needs to know
            of them is estimated.

    Raises:
        UsageError: settings that the prior cannot follow.
        TooLargeError: it does not fit the memory.
    """
    prior: Prior = PRIORS[settings.objective]
    return prior.build(kernel, image_size, settings, _estimate(prior.needs(settings), kernel, image_size, settings, y))


def _estimate(
    needed: DataEstimate | None, kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor
) -> float | None:
    """Estimate what a prior needs to know of the data."""
    data = y.detach()
    if needed == "weight":
        return find_variation_weight(data, kernel, image_size, settings)
    if needed == "gain":
        return estimate_gain(data, kernel.n_axes)
    known = settings.noise.sigma if isinstance(settings.noise, NoiseModel) else None
    return None if needed is None else known or estimate_noise(data, kernel.n_axes)
