"""λ chosen from the data, in rounds: by frequency for pictures, by probing for layers.

The rules are exact on a torus, and a picture is not periodic: cross-validation on data that were continued by mirroring
was wrong by a factor of 100. So the true problem is solved with the current λ, that estimate predicts the data beyond
the frame, and λ is chosen again, until it no longer changes. Each round improves the estimate of the last one.

For a layer no torus represents the operator. Power and gains are those of the operator under its true border, as exact
as the number of steps and of random signs allows (`probing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import LambdaCurve, PowerByGain, SpectralData, choose_by_rule, likeliest_noise
from deconv_cli.diagnostics.noise_level import estimate_noise_of_spectrum
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.probing import ProbedPower
from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.vocabulary import LambdaRule, Size, counted

MAX_ROUNDS = 8
N_STEPS = (16, 16, 32, 64, 128)
"""Steps of the bidiagonalization in each round of probing."""
CONVERGED = 0.05
"""Relative change of λ between two rounds at which the choice is final."""
DISAGREEMENT = 10.0
"""The user is warned if two rules differ by this factor."""


Data = TypeVar("Data", SpectralData, PowerByGain)


@dataclass(frozen=True)
class LambdaChoice:
    """A λ that was chosen from the data, and how.

    Attributes:
        lam: λ, in units of σ²max.
        rule: the rule that chose it.
        sigma: standard deviation of the noise, in the units of the samples, given or estimated.
        is_sigma_given: whether it was given.
        curve: what the rule minimized in the last round.
        cross_check: what a second rule minimized, on the same data.
        n_rounds: how often the true problem was solved.
        is_converged: whether λ no longer changed in the last round.
        window: size of the piece of the data that was used.
        n_places: λ is the median over this number of places of the frame; 1 for a single kernel.
        is_sigma_modeled: whether a model of the image gave the noise.
    """

    lam: float
    rule: LambdaRule
    sigma: float
    is_sigma_given: bool
    curve: LambdaCurve
    cross_check: LambdaCurve
    n_rounds: int
    is_converged: bool
    window: Size
    n_places: int = 1
    is_sigma_modeled: bool = False

    @property
    def reason(self) -> str:
        """How λ was found, as a clause."""
        modeled = " (by a model of the image; give noise_sigma if it is known)" if self.is_sigma_modeled else ""
        words = {
            LambdaRule.GCV: "generalized cross-validation",
            LambdaRule.ML: "the largest marginal likelihood",
            LambdaRule.DISCREPANCY: f"a residual as large as the noise, σ = {self.sigma:.3g}{modeled}",
            LambdaRule.UPRE: f"the least predicted risk for noise of σ = {self.sigma:.3g}{modeled}",
            LambdaRule.WHITENESS: "the whitest residual",
        }
        rounds = f" in {counted(self.n_rounds, 'round')}" if self.n_rounds else ""
        other = self.cross_check
        median = f", the median of {self.n_places} places" if self.n_places > 1 else ""
        return f"chosen by {words[self.rule]}{rounds}{median}; {other.rule} would choose {other.chosen:.2g}"

    @property
    def failure(self) -> str | None:
        """Why no λ was found, as a clause; `None` if the rule has a minimum."""
        # The least risk at the smallest λ is a result: this noise needs no λ.
        if not self.curve.is_at_end or (self.rule is LambdaRule.UPRE and self.lam < 1):
            return None
        return (
            f"the rule {self.rule} has no minimum between {self.curve.lams[0]:g} and {self.curve.lams[-1]:g}, so it "
            "chose no λ; set lam to a number, or use another lambda_rule"
        )

    @property
    def warning(self) -> str | None:
        """Why to check the choice, as a clause; `None` if there is no reason."""
        if self.failure is not None:
            return self.failure
        ratio = self.curve.chosen / self.cross_check.chosen
        # The discrepancy is far larger than the least risk, by nature and not by mistake.
        are_alike = {self.rule, self.cross_check.rule} == {LambdaRule.UPRE, LambdaRule.DISCREPANCY}
        if not are_alike and not 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
            return (
                f"two rules differ by a factor of {max(ratio, 1 / ratio):.0f}: {self.rule} chooses λ = "
                f"{self.curve.chosen:.2g}, {self.cross_check.rule} chooses {self.cross_check.chosen:.2g}; check the "
                "kernel and the noise, which may be wrong"
            )
        if not self.is_converged:
            return f"the choice of λ still changed after {counted(self.n_rounds, 'round')}; try another lambda_rule"
        return None


def choose_lambda(
    extension: PeriodicExtension,
    y: Tensor,
    is_clipped: Tensor | None = None,
    *,
    rule: LambdaRule | None = LambdaRule.GCV,
    sigma: float | None = None,
    least_sigma: float = 0.0,
) -> LambdaChoice:
    """Choose λ from a piece of the data.

    Args:
        extension: built for the kernel and the size of the data.
        y: shape `(C, *size)` or `(B, C, *size)`, without the bias, of the kernel's precision.
        is_clipped: which samples are only lower bounds, of the shape of `y`.
        rule: which rule. `None` is cross-validation, or the whitest residual where that asks for a far larger λ: noise
            that is not white looks like a part of the picture to cross-validation (Altman, "Kernel smoothing of data
            with correlated errors", Journal of the American Statistical Association 85, 1990).
        sigma: standard deviation of the noise in the units of the samples; estimated by default.
        least_sigma: lower bound of the estimate, such as the noise of rounding.
    """

    def noise_of(data: SpectralData) -> float:
        if sigma is not None:
            return sigma
        known = extension.noise and extension.noise.sigma
        return max(known or estimate_noise_of_spectrum(data), least_sigma)

    first = extension.initial(y)
    if extension.is_periodic:
        found = _choose_in_rounds(lambda _: first, noise_of, extension.window, rule or LambdaRule.GCV, n_rounds=1)
        return replace(found, n_rounds=0, is_converged=True, is_sigma_given=sigma is not None)
    estimate: Tensor | None = None

    def continued(lam: float) -> SpectralData:
        nonlocal estimate
        if is_clipped is None:
            estimate = extension.improved(y, lam, estimate)
        return extension.continued(y, lam, is_clipped, estimate)

    start = choose_by_rule(LambdaRule.ML, first, 0.0).chosen
    found = _choose_in_rounds(continued, noise_of, extension.window, rule, start=start)
    return replace(found, is_sigma_given=sigma is not None)


def choose_lambda_by_probing(
    operator: LinearOperator,
    y: Tensor,
    sigma_max: float,
    *,
    rule: LambdaRule | None = None,
    sigma: float | None = None,
    modeled_sigma: Callable[[], float] | None = None,
    least_sigma: float = 0.0,
) -> LambdaChoice:
    """Choose λ in ‖Ax − y‖² + λσ²max‖x‖² for data `(*batch, *output_shape)`, with more steps from round to round.

    If there are fewer outputs than inputs, no part of the outputs is noise alone, and power by gain does not separate
    it from the image: for photographs behind such layers cross-validation and likelihood overestimated the noise up to
    900 times. A model of the image then gives the noise, by `modeled_sigma`. The rule is any but `whiteness`; by
    default `gcv`, or `upre` with a modeled σ. See `choose_lambda` for the noise.
    """
    probed, n_steps = ProbedPower(operator, y, sigma_max), iter(N_STEPS)
    known = max(modeled_sigma(), least_sigma) if sigma is None and modeled_sigma is not None else sigma
    rule = rule or (LambdaRule.GCV if modeled_sigma is None else LambdaRule.UPRE)
    check = None
    if modeled_sigma is not None:  # by another rule that uses this noise
        check = LambdaRule.DISCREPANCY if rule is LambdaRule.UPRE else LambdaRule.UPRE

    def data_of(_: float) -> PowerByGain:
        probed.extend(next(n_steps))
        return probed.by_gain()

    def noise_of(data: PowerByGain) -> float:
        if known is not None:
            return known
        lam = choose_by_rule(LambdaRule.ML, data, 0.0).chosen
        return max(synchronize.as_number(likeliest_noise(data, lam)), least_sigma)

    window = tuple(operator.output_shape[1:])
    found = _choose_in_rounds(data_of, noise_of, window, rule, n_rounds=len(N_STEPS), check=check)
    return replace(found, is_sigma_given=sigma is not None, is_sigma_modeled=known is not None and sigma is None)


def _choose_in_rounds(
    data_of: Callable[[float], Data],
    noise_of: Callable[[Data], float],
    window: Size,
    rule: LambdaRule | None,
    *,
    start: float = math.nan,
    n_rounds: int = MAX_ROUNDS,
    check: LambdaRule | None = None,
) -> LambdaChoice:
    """Choose λ from data that depend on the last λ, until it no longer changes.

    `data_of` gives the data of the next round for the last λ, and `noise_of` their noise. The cross-check is by rule
    `check`; `gcv` by default, or `ml` for `gcv` itself.
    """
    is_open, rule = rule is None, rule or LambdaRule.GCV
    lam, n, is_converged = start, 0, False
    while n < n_rounds and not is_converged:
        data, n = data_of(lam), n + 1
        noise = noise_of(data)
        curve = choose_by_rule(rule, data, noise)
        if is_open and rule is LambdaRule.GCV:
            whitest = choose_by_rule(LambdaRule.WHITENESS, data, 0.0)
            if whitest.chosen > DISAGREEMENT * curve.chosen and not whitest.is_at_end:
                curve, rule = whitest, LambdaRule.WHITENESS
        is_converged = abs(math.log(curve.chosen / lam)) <= CONVERGED
        lam = curve.chosen
    other = check or (LambdaRule.ML if rule is LambdaRule.GCV else LambdaRule.GCV)
    return LambdaChoice(
        lam=lam,
        rule=rule,
        sigma=noise,
        is_sigma_given=False,
        curve=curve,
        cross_check=choose_by_rule(other, data, noise),
        n_rounds=n,
        is_converged=is_converged,
        window=window,
    )
