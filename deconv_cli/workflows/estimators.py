"""Estimates beyond the quadratic: what may be asked for, what contradicts what, and which solver answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

from torch import Tensor

from deconv_cli.diagnostics.gain import estimate_gain
from deconv_cli.diagnostics.noise_level import estimate_noise
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.parts import PRIORS
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.prior import DataEstimate, Prior
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class Wishes:
    """What is asked of an estimate beyond a quadratic penalty.

    Attributes:
        nonnegative: no pixel below zero.
        prior: what is likely of an image.
        weight: of the total variation, in the unit of the samples; `None` or `auto` takes it from the noise.
        gain: for Richardson–Lucy, units of the samples a count, or `auto` to read it off the data, if they tell; `None`
            to hold samples out instead.
        noise_sigma: standard deviation of the noise, from which the weight follows; `None` estimates it.

    Raises:
        UsageError: a number that is none, or not positive.
    """

    nonnegative: bool = False
    prior: str = "quadratic"
    weight: float | Literal["auto"] | None = None
    gain: float | Literal["auto"] | None = None
    noise_sigma: float | None = None

    def __post_init__(self) -> None:
        self._take_positive("weight", "auto or a positive number")
        self._take_positive("gain", "auto or a positive number")
        self._take_positive("noise_sigma", "a positive number")

    def _take_positive(self, name: str, wanted: str) -> None:
        """Turn a number of any library into a plain one; `None`, and `auto` where it has a meaning, stay."""
        value = getattr(self, name)
        if value is None or (value == "auto" and "auto" in wanted):
            return
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise UsageError(f"{name} must be {wanted}, but is {value!r}.")
        object.__setattr__(self, name, float(value))

    def are_linear(self, method: str) -> bool:
        """Tell whether a pseudo-inverse fulfills them."""
        return not self.nonnegative and self.prior == "quadratic" and method != "richardson-lucy"

    def has_lambda(self, method: str) -> bool:
        """Tell whether there is a quadratic penalty, and so a λ."""
        return self.prior == "quadratic" and method != "richardson-lucy"

    def check(self, method: str, *, lam: float | str | None, penalty: str | None, rcond: float | None) -> None:
        """Refuse wishes that contradict one another, or the other settings.

        Args:
            method: as asked for.
            lam: λ, `None` where it was left open.
            penalty: `None` where it was left open.
            rcond: `None` where it was left open.

        Raises:
            UsageError: they do.
        """
        is_tv, is_rl = self.prior == "tv", method == "richardson-lucy"
        if self.weight is not None and not is_tv:
            raise UsageError("a weight is that of prior tv, which was not asked for; use prior tv, or λ without it.")
        if self.gain is not None and not is_rl:
            raise UsageError("a gain is of use to method richardson-lucy alone; use that method, or leave it out.")
        if is_rl and (is_tv or self.nonnegative):
            what = "prior tv" if is_tv else "nonnegative, which its estimates are anyway,"
            raise UsageError(f"method richardson-lucy knows no other wishes, but {what} was given too; leave it out.")
        if is_tv and self.nonnegative:
            raise UsageError("prior tv and nonnegative do not go together; leave one of them out.")
        name = "method richardson-lucy" if is_rl else "prior tv" if is_tv else "a nonnegative estimate"
        if not self.are_linear(method) and rcond is not None:
            raise UsageError(f"{name} truncates no singular values, but rcond was given; leave it out.")
        if (is_tv or is_rl) and lam is not None:
            instead = "use weight instead" if is_tv else "leave it out: it stops at the noise"
            raise UsageError(f"{name} has no λ, but one was given; {instead}.")
        if (is_tv or is_rl) and penalty is not None:
            raise UsageError(f"{name} has no other penalty, but {penalty} was given; leave it out.")

    def check_prediction(self, method: str, *, is_asked_for: bool) -> None:
        """Refuse to predict the error of an estimate that is not linear.

        Raises:
            UsageError: it is asked for all the same.
        """
        if is_asked_for and not self.are_linear(method):
            raise UsageError(
                "a report, a truth, an error map or a trust mask needs an estimate that is linear in the data, which "
                "nonnegative, prior tv and method richardson-lucy do not give; ask for the one or the other."
            )


ESTIMATES: dict[DataEstimate, Callable[[Tensor], float | None]] = {"noise": estimate_noise, "gain": estimate_gain}
"""What a prior may need to know of the data."""


def build_estimator(
    kernel: Kernel, image_size: Size, settings: ResolvedSettings, wishes: Wishes, y: Tensor
) -> Estimator:
    """Build what answers the wishes.

    Args:
        kernel: canonical kernel, in the precision of the arithmetic.
        image_size: height and width of the images that are wanted back.
        settings: the other settings; λ and penalty matter where the prior is quadratic.
        wishes: checked already.
        y: the outputs, less a bias, shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`: noise or gain are estimated
            from them where they are wanted and not given.

    Raises:
        UsageError: settings that contradict one another, or data from which a weight cannot be told.
        TooLargeError: it does not fit the memory.
    """
    settings = replace(
        settings,
        nonnegative=wishes.nonnegative,
        prior=wishes.prior,
        weight=wishes.weight,
        gain=wishes.gain,
        noise_sigma=wishes.noise_sigma,
    )
    if settings.is_linear:
        return PseudoInverse(kernel, image_size, settings)
    prior: Prior = PRIORS[settings.objective]
    needed = prior.needs(settings)
    estimate = None if needed is None else ESTIMATES[needed](y.detach())
    return prior.build(kernel, image_size, settings, estimate)
