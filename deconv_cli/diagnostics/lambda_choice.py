"""λ chosen from the data, under the boundary of a picture: rules of the torus on data that are continued by the model.

The rules are exact on a torus, and a picture is none: cross-validation on data that were continued by mirroring was
wrong by a factor of 100. So the true problem is solved with the present λ, the data beyond the frame are what the model
predicts from that estimate, and λ is chosen again, until it no longer changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.lambda_rules import LambdaCurve, choose_by_rule
from deconv_cli.diagnostics.noise_level import estimate_noise_of_spectrum
from deconv_cli.diagnostics.power_by_gain import PowerByGain
from deconv_cli.diagnostics.spectral_data import SpectralData
from deconv_cli.vocabulary import LambdaRule, Size, counted

MAX_ROUNDS = 8
CONVERGED = 0.05
"""Relative change of λ between two rounds at which the choice is final."""
DISAGREEMENT = 10.0
"""Factor between the choices of two rules from which on the user is warned."""


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
        is_converged: whether λ no longer changed in the end.
        window: size of the piece of the data that was looked at.
        is_sigma_modeled: whether it was found by a model of the image.
        n_places: of the frame where λ was chosen, this one being the median; 1 for a single kernel.
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
        """A sentence on how λ was found."""
        modeled = " (by a model of the image; give noise_sigma if it is known)" if self.is_sigma_modeled else ""
        words = {
            LambdaRule.GCV: "generalized cross-validation",
            LambdaRule.ML: "the largest marginal likelihood",
            LambdaRule.DISCREPANCY: f"a residual as large as the noise, σ = {self.sigma:.3g}{modeled}",
            LambdaRule.UPRE: f"the least predicted risk for noise of σ = {self.sigma:.3g}{modeled}",
            LambdaRule.LCURVE: "the corner of the L-curve",
            LambdaRule.WHITENESS: "the whitest residual",
        }
        rounds = f" in {counted(self.n_rounds, 'round')}" if self.n_rounds else ""
        other = self.cross_check
        median = f", the median of {self.n_places} places" if self.n_places > 1 else ""
        return f"chosen by {words[self.rule]}{rounds}{median}; {other.rule} would take {other.chosen:.2g}"

    @property
    def failure(self) -> str | None:
        """A sentence on why nothing was found; `None` if the rule has a minimum."""
        # The least risk at the smallest λ is a finding: this noise needs none.
        if not self.curve.is_at_end or (self.rule is LambdaRule.UPRE and self.lam < 1):
            return None
        return (
            f"the rule {self.rule} has no minimum between {self.curve.lams[0]:g} and {self.curve.lams[-1]:g}, so it "
            "chose no λ; set lam to a number, or take another lambda_rule"
        )

    @property
    def warning(self) -> str | None:
        """A sentence on why to look at it; `None` if there is no reason."""
        if self.failure is not None:
            return self.failure
        ratio = self.curve.chosen / self.cross_check.chosen
        # The discrepancy is far larger than the least risk, by nature and not by mistake.
        are_alike = {self.rule, self.cross_check.rule} == {LambdaRule.UPRE, LambdaRule.DISCREPANCY}
        if not are_alike and not 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
            return (
                f"two rules differ by a factor of {max(ratio, 1 / ratio):.0f}: {self.rule} takes λ = "
                f"{self.curve.chosen:.2g} and {self.cross_check.rule} {self.cross_check.chosen:.2g}; the kernel or "
                "the noise may not be what they are taken for, so look at both"
            )
        if not self.is_converged:
            return f"the choice of λ still changed after {counted(self.n_rounds, 'round')}; try another lambda_rule"
        return None


def cross_check(rule: LambdaRule, data: SpectralData | PowerByGain, noise: float) -> LambdaCurve:
    """Choose λ by another rule, which the choice is held against."""
    return choose_by_rule(LambdaRule.ML if rule is LambdaRule.GCV else LambdaRule.GCV, data, noise)


def choose_lambda(
    continuation: Continuation,
    y: Tensor,
    is_clipped: Tensor | None = None,
    *,
    rule: LambdaRule | None = LambdaRule.GCV,
    sigma: float | None = None,
    least_sigma: float = 0.0,
) -> LambdaChoice:
    """Choose λ from a piece of the data.

    Args:
        continuation: built for the kernel and the size of the data.
        y: shape `(C, *size)` or `(B, C, *size)`, without the bias, of the kernel's precision.
        is_clipped: which samples are no more than lower bounds, of the shape of `y`.
        rule: which rule; `None` for cross-validation, or the whitest residual where that asks for far more: noise that
            is not what it is taken for passes for a part of the picture, and leaves cross-validation a λ far too small
            (Altman, "Kernel smoothing of data with correlated errors", Journal of the American Statistical Association
            85, 1990).
        sigma: standard deviation of the noise in the units of the samples; by default it is estimated.
        least_sigma: an estimate is taken to be at least this, as that of rounding.

    Raises:
        ShapeError: `y` does not fit the kernel.
    """

    def noise_of(data: SpectralData) -> float:
        if sigma is not None:
            return sigma
        known = continuation.noise and continuation.noise.sigma
        return max(known or estimate_noise_of_spectrum(data), least_sigma)

    is_open, rule = rule is None, rule or LambdaRule.GCV
    data = continuation.initial(y)
    n_rounds, is_converged = 0, continuation.is_periodic
    lam = choose_by_rule(LambdaRule.ML, data, 0.0).chosen
    while n_rounds < MAX_ROUNDS and not is_converged:
        data = continuation.continued(y, lam, is_clipped)
        n_rounds += 1
        found = choose_by_rule(rule, data, noise_of(data)).chosen
        if is_open and rule is LambdaRule.GCV:
            whitest = choose_by_rule(LambdaRule.WHITENESS, data, 0.0)
            if whitest.chosen > DISAGREEMENT * found and not whitest.is_at_end:
                found, rule = whitest.chosen, LambdaRule.WHITENESS
        is_converged = abs(math.log(found / lam)) <= CONVERGED
        lam = found
    noise = noise_of(data)
    curve = choose_by_rule(rule, data, noise)
    return LambdaChoice(
        lam=curve.chosen,
        rule=rule,
        sigma=noise,
        is_sigma_given=sigma is not None,
        curve=curve,
        cross_check=cross_check(rule, data, noise),
        n_rounds=n_rounds,
        is_converged=is_converged,
        window=continuation.window,
    )
