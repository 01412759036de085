"""λ chosen from the data, in rounds.

The rules are exact on a torus, and a picture is not periodic: cross-validation on data that were continued by mirroring
was wrong by a factor of 100. So the true problem is solved with the current λ, that estimate predicts the data beyond
the frame, and λ is chosen again, until it no longer changes. Each round improves the estimate of the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deconv_cli.diagnostics.lambda_rules import LambdaCurve, choose_by_rule
from deconv_cli.diagnostics.noise_level import estimate_noise_of_spectrum
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.vocabulary import LambdaRule, Size, counted

MAX_ROUNDS = 8
CONVERGED = 0.05
"""Relative change of λ between two rounds at which the choice is final."""
DISAGREEMENT = 10.0
"""The user is warned if two rules differ by this factor."""


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

    @property
    def reason(self) -> str:
        """How λ was found, as a clause."""
        words = {
            LambdaRule.GCV: "generalized cross-validation",
            LambdaRule.ML: "the largest marginal likelihood",
            LambdaRule.DISCREPANCY: f"a residual as large as the noise, σ = {self.sigma:.3g}",
            LambdaRule.UPRE: f"the least predicted risk for noise of σ = {self.sigma:.3g}",
            LambdaRule.WHITENESS: "the whitest residual",
        }
        rounds = f" in {counted(self.n_rounds, 'round')}" if self.n_rounds else ""
        other = self.cross_check
        median = f", the median of {self.n_places} places" if self.n_places > 1 else ""
        compared = f"for comparison, the rule {other.rule} gives {other.chosen:.2g}"
        limit = f"at the {'lower' if self.lam < 1 else 'upper'} limit, " if self.curve.is_at_end else ""
        return f"{limit}chosen by {words[self.rule]}{rounds}{median}; {compared}"

    @property
    def is_of_no_noise(self) -> bool:
        """Whether the rule took the least λ of all, as it does for data without noise."""
        return self.curve.is_at_end and self.lam < 1 and self.rule is not LambdaRule.DISCREPANCY

    @property
    def failure(self) -> str | None:
        """Why no λ was found, as a clause; `None` if the rule has a minimum."""
        # The least risk at the smallest λ is a result: this noise needs no λ.
        if not self.curve.is_at_end or (self.rule is LambdaRule.UPRE and self.lam < 1):
            return None
        if self.is_of_no_noise:
            return f"the data hold no noise that λ could be chosen by, so the least λ, {self.lam:g}, was used"
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
        if not 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
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
    accuracy: float = CONVERGED,
) -> LambdaChoice:
    """Choose λ from a piece of data `(C, *size)` or `(B, C, *size)`, without the bias, of the kernel's precision.

    `is_clipped` marks samples that are only lower bounds. Without a rule, `gcv` chooses, or `whiteness` if its λ is far
    larger: cross-validation mistakes noise that is not white for detail (Altman, "Kernel smoothing of data with
    correlated errors", Journal of the American Statistical Association 85, 1990). By default the noise is estimated,
    and is at least `least_sigma`, such as the noise of rounding. λ is final once it changes by at most `accuracy`,
    relatively. The cross-check is by `gcv`, or by `ml` for `gcv`.
    """
    is_open, rule = rule is None and not extension.is_periodic, rule or LambdaRule.GCV
    lam = math.nan if extension.is_periodic else choose_by_rule(LambdaRule.ML, extension.initial(y), 0.0).chosen
    estimate: Tensor | None = None
    n, is_converged = 0, False
    while n < MAX_ROUNDS and not is_converged:
        if is_clipped is None and not extension.is_periodic:
            estimate = extension.improved(y, lam, estimate)
        data, n = extension.continued(y, lam, is_clipped, estimate), n + 1
        known = extension.noise and extension.noise.sigma
        noise = max(known or estimate_noise_of_spectrum(data), least_sigma) if sigma is None else sigma
        curve = choose_by_rule(rule, data, noise)
        if is_open and rule is LambdaRule.GCV:
            whitest = choose_by_rule(LambdaRule.WHITENESS, data, 0.0)
            if whitest.chosen > DISAGREEMENT * curve.chosen and not whitest.is_at_end:
                curve, rule = whitest, LambdaRule.WHITENESS
        is_converged = extension.is_periodic or abs(math.log(curve.chosen / lam)) <= accuracy
        lam = curve.chosen
    return LambdaChoice(
        lam=lam,
        rule=rule,
        sigma=noise,
        is_sigma_given=sigma is not None,
        curve=curve,
        cross_check=choose_by_rule(LambdaRule.ML if rule is LambdaRule.GCV else LambdaRule.GCV, data, noise),
        n_rounds=0 if extension.is_periodic else n,
        is_converged=is_converged,
        window=extension.window,
    )
