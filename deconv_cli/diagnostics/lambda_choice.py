"""λ chosen from the data, under the border of a picture: rules of the torus on data that are continued by the model.

The rules are exact on a torus, and a picture is none: cross-validation on data that were continued by mirroring was
wrong by a factor of 100. So the true border problem is solved with the present λ, the data beyond the frame are what
the model predicts from that estimate, and λ is chosen again, until it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deconv_cli.diagnostics.continuation import Continuation
from deconv_cli.diagnostics.lambda_rules import LambdaCurve, choose_by_rule
from deconv_cli.diagnostics.noise_level import noise_floor
from deconv_cli.diagnostics.spectral_data import SpectralData
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.vocabulary import LambdaRule, Size

MAX_ROUNDS = 8
SETTLED = 0.05
"""Relative change of λ between two rounds at which the choice stands."""
DISAGREEMENT = 10.0
"""Factor between the choices of two rules from which on a person is warned."""


@dataclass(frozen=True)
class LambdaChoice:
    """A λ that was chosen from the data, and what speaks for it.

    Attributes:
        lam: λ, in units of σ²max.
        rule: the rule that chose it.
        sigma: standard deviation of the noise, in the units of the samples, given or estimated.
        is_sigma_given: whether it was given.
        curve: what the rule looked at in the last round.
        witness: what a second rule looked at, on the same data.
        n_rounds: how often the border problem was solved.
        is_settled: whether λ stood still in the end.
        window: height and width of the piece of the data that was looked at.
    """

    lam: float
    rule: LambdaRule
    sigma: float
    is_sigma_given: bool
    curve: LambdaCurve
    witness: LambdaCurve
    n_rounds: int
    is_settled: bool
    window: Size

    @property
    def reason(self) -> str:
        """Say in a sentence how λ was found."""
        words = {
            LambdaRule.GCV: "generalized cross-validation",
            LambdaRule.ML: "the largest marginal likelihood",
            LambdaRule.DISCREPANCY: f"a residual as large as the noise, σ = {self.sigma:.3g}",
            LambdaRule.UPRE: f"the least predicted risk for noise of σ = {self.sigma:.3g}",
            LambdaRule.LCURVE: "the corner of the L-curve",
            LambdaRule.WHITENESS: "the whitest residual",
        }
        rounds = f" in {self.n_rounds} rounds of the border problem" if self.n_rounds else ""
        return f"chosen by {words[self.rule]}{rounds}; {self.witness.rule} would take {self.witness.chosen:.2g}"

    @property
    def warning(self) -> str | None:
        """Say what speaks against it, if anything does."""
        ratio = self.curve.chosen / self.witness.chosen
        if self.curve.is_at_end:
            return (
                f"the rule {self.rule} has no least value between {self.curve.lams[0]:g} and {self.curve.lams[-1]:g}; "
                "give λ by hand, or take another --lambda-rule"
            )
        if not 1 / DISAGREEMENT <= ratio <= DISAGREEMENT:
            return (
                f"two rules differ by a factor of {max(ratio, 1 / ratio):.0f}: {self.rule} takes λ = "
                f"{self.curve.chosen:.2g} and {self.witness.rule} {self.witness.chosen:.2g}; the kernel or the noise "
                "may not be what they are taken for, so look at both"
            )
        if not self.is_settled:
            return f"λ still moved after {self.n_rounds} rounds; try another --lambda-rule"
        return None


def choose_lambda(
    y: Tensor,
    kernel: Kernel,
    *,
    boundary: str,
    penalty: str,
    rule: LambdaRule = LambdaRule.GCV,
    sigma: float | None = None,
    least_sigma: float = 0.0,
    max_memory: int | None = None,
) -> LambdaChoice:
    """Choose λ from a piece of the data (see `Continuation`).

    Args:
        y: shape `(C, H_y, W_y)` or `(B, C, H_y, W_y)`, without the bias, of the kernel's precision.
        kernel: what made it.
        boundary: only whether it is circular matters.
        penalty: which L.
        rule: which rule.
        sigma: standard deviation of the noise; by default it is estimated where a rule asks for it.
        least_sigma: an estimate is taken to be at least this, as that of rounding.
        max_memory: bytes that the solutions may take.

    Raises:
        ShapeError: `y` does not fit the kernel.
    """
    continuation = Continuation(y, kernel, boundary=boundary, penalty=penalty, max_memory=max_memory)
    data = continuation.started()
    n_rounds, is_settled = 0, continuation.is_periodic
    lam = choose_by_rule(LambdaRule.ML, data, 0.0).chosen
    while n_rounds < MAX_ROUNDS and not is_settled:
        data = continuation.continued(lam)
        n_rounds += 1
        found = choose_by_rule(rule, data, _noise(data, sigma, least_sigma)).chosen
        is_settled = abs(math.log(found / lam)) <= SETTLED
        lam = found
    level = _noise(data, sigma, least_sigma)
    return LambdaChoice(
        lam=lam if n_rounds else choose_by_rule(rule, data, level).chosen,
        rule=rule,
        sigma=level,
        is_sigma_given=sigma is not None,
        curve=choose_by_rule(rule, data, level),
        witness=choose_by_rule(LambdaRule.ML if rule is LambdaRule.GCV else LambdaRule.GCV, data, level),
        n_rounds=n_rounds,
        is_settled=is_settled,
        window=continuation.window,
    )


def _noise(data: SpectralData, sigma: float | None, least: float) -> float:
    return max(noise_floor(data), least) if sigma is None else sigma
