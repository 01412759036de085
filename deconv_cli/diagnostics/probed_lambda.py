"""λ chosen from the data of any linear operator under penalty identity: the rules on power by gain that is probed.

No torus stands for the operator: power and gains are those of the operator under its true border, up to how many steps
were taken and how many signs were drawn (`golub_kahan.py`).
"""

from __future__ import annotations

import math

from torch import Tensor

from deconv_cli.diagnostics.golub_kahan import ProbedPower
from deconv_cli.diagnostics.lambda_choice import CONVERGED, LambdaChoice, cross_check
from deconv_cli.diagnostics.lambda_rules import choose_by_rule, likeliest_noise
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
    rule: LambdaRule = LambdaRule.GCV,
    sigma: float | None = None,
    least_sigma: float = 0.0,
) -> LambdaChoice:
    """Choose λ in ‖Ax − y‖² + λσ²max‖x‖², with more and more steps, until it stands.

    Args:
        operator: A.
        y: shape `(*batch, *output_shape)`.
        sigma_max: the largest singular value that λ is measured by.
        rule: which rule, but for `whiteness`.
        sigma: standard deviation of the noise in the units of the samples; by default the likeliest.
        least_sigma: an estimate is taken to be at least this, as that of rounding.
    """
    probed = ProbedPower(operator, y, sigma_max)

    def noise_of(data: PowerByGain) -> float:
        if sigma is not None:
            return sigma
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
        curve=curve,
        cross_check=cross_check(rule, data, noise),
        n_rounds=n_rounds,
        is_converged=is_converged,
        window=tuple(operator.output_shape[1:]),
    )
