"""Build what estimates the images where that is not a linear inverse, with what it needs to know of the noise."""

from __future__ import annotations

from torch import Tensor

from deconv_cli.diagnostics.gain import estimate_gain
from deconv_cli.diagnostics.noise_level import estimate_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.nonnegative import NonnegativeEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.richardson_lucy import RichardsonLucyEstimator
from deconv_cli.solvers.total_variation import TotalVariationEstimator
from deconv_cli.vocabulary import Size


def build_estimator(kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor) -> Estimator:
    """Build what minimizes the objective of the settings.

    Args:
        kernel: canonical kernel, in the precision of the arithmetic.
        image_size: height and width of the images that are wanted back.
        settings: what was resolved.
        y: the outputs, less a bias, shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`: noise or gain are estimated
            from them where they are needed and not given.

    Raises:
        UsageError: settings that contradict one another, or data from which a weight cannot be found.
        TooLargeError: it does not fit the memory.
    """
    if settings.objective == "richardson-lucy":
        if settings.gain != "auto":
            return RichardsonLucyEstimator(kernel, image_size, settings, gain=settings.gain)
        gain = estimate_gain(y.detach())
        told = "do not tell a gain" if gain is None else "tell"
        origin = f"as mean and variance of the data {told}"
        return RichardsonLucyEstimator(kernel, image_size, settings, gain=gain, origin=origin)
    if settings.objective == "tv":
        if settings.weight is not None and settings.weight != "auto":
            return TotalVariationEstimator(kernel, image_size, settings, weight=settings.weight)
        noise = estimate_noise(y.detach()) if settings.noise_sigma is None else settings.noise_sigma
        return TotalVariationEstimator(kernel, image_size, settings, weight=None, noise=noise)
    return NonnegativeEstimator(PseudoInverse(kernel, image_size, settings))
