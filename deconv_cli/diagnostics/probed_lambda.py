"""λ chosen from the data of any linear operator under penalty identity: the rules on power by gain that is probed.

No torus stands for the operator: power and gains are those of the operator under its true border, up to how many steps
were taken and how many signs were drawn (`golub_kahan.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from deconv_cli.diagnostics.golub_kahan import ProbedPower
from deconv_cli.diagnostics.lambda_choice import CONVERGED, LambdaChoice, cross_check
from deconv_cli.diagnostics.lambda_rules import LambdaCurve, choose_by_rule, likeliest_noise
from deconv_cli.diagnostics.power_by_gain import PowerByGain
from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.vocabulary import LambdaRule

N_STEPS = (16, 16, 32, 64, 128)
"""How many are taken before λ is chosen again."""


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
    """Choose λ in ‖Ax − y‖² + λσ²max‖x‖², with more and more steps, until it stands.

    Where there are fewer outputs than inputs no part of them is noise alone, and power by gain does not tell it from
    the image: of photographs behind such layers cross-validation and likelihood took a noise of up to 900 times what it
    was. The noise is then that of a model of the image.

    Args:
        operator: A.
        y: shape `(*batch, *output_shape)`.
        sigma_max: the largest singular value that λ is measured by.
        rule: which rule, but for `whiteness`; by default `gcv`, or `upre` with a modeled σ.
        sigma: standard deviation of the noise in the units of the samples; by default the likeliest.
        modeled_sigma: finds σ from a model of the image; for operators that have fewer outputs than inputs.
        least_sigma: an estimate is taken to be at least this, as that of rounding.
    """
    probed, is_modeled = ProbedPower(operator, y, sigma_max), modeled_sigma is not None
    rule = rule or (LambdaRule.UPRE if is_modeled else LambdaRule.GCV)
    known = sigma
    if known is None and modeled_sigma is not None:
        known = max(modeled_sigma(), least_sigma)

    def noise_of(data: PowerByGain) -> float:
        if known is not None:
            return known
        lam = choose_by_rule(LambdaRule.ML, data, 0.0).chosen
        return max(synchronize.as_number(likeliest_noise(data, lam)), least_sigma)

    lam, n_rounds, is_converged = math.nan, 0, False
    while n_rounds < len(N_STEPS) and not is_converged:
        probed.extend(N_STEPS[n_rounds])
        data = probed.by_gain()
        noise = noise_of(data)
        curve = choose_by_rule(rule, data, noise)
        is_converged = abs(math.log(curve.chosen / lam)) <= CONVERGED
        lam, n_rounds = curve.chosen, n_rounds + 1
    return LambdaChoice(
        lam=curve.chosen,
        rule=rule,
        sigma=noise,
        is_sigma_given=sigma is not None,
        is_sigma_modeled=is_modeled and sigma is None,
        curve=curve,
        cross_check=_cross_check(rule, data, noise) if is_modeled else cross_check(rule, data, noise),
        n_rounds=n_rounds,
        is_converged=is_converged,
        window=tuple(operator.output_shape[1:]),
    )


def _cross_check(rule: LambdaRule, data: PowerByGain, noise: float) -> LambdaCurve:
    """Choose λ by another rule that takes the noise as it is modeled."""
    other = LambdaRule.DISCREPANCY if rule is LambdaRule.UPRE else LambdaRule.UPRE
    return choose_by_rule(other, data, noise)
