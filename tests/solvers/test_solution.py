"""The sentences about the end of a solve."""

import pytest
import torch

from deconv_cli.errors import UntrustworthyResultError
from deconv_cli.solvers import richardson_lucy
from deconv_cli.solvers.solution import QUADRATIC_OBJECTIVE, Solution, Status

CASES = {
    (QUADRATIC_OBJECTIVE, None): 'use dtype="float64", a larger tolerance, or a λ nearer to 1',
    ("½‖Ax − y‖² + 0.1·TV(x)", 0.1): 'use dtype="float64" or a larger tolerance, or take another weight',
    (richardson_lucy.OBJECTIVE, None): 'use dtype="float64" or a larger tolerance',
}


def test_advice_does_not_name_the_precision_that_is_in_use():
    solution = Solution(torch.zeros(1).double(), Status.STAGNATED, 3, 0.5, objective=QUADRATIC_OBJECTIVE)
    assert solution.ending.endswith("; use a larger tolerance, or a λ nearer to 1")


@pytest.mark.parametrize("case", CASES)
def test_advice_names_what_the_objective_has(case):
    objective, weight = case
    solution = Solution(torch.zeros(1), Status.STAGNATED, 3, 0.5, objective=objective, weight=weight)
    told = f"the arithmetic's precision ran out before the tolerance was reached; {CASES[case]}"
    assert solution.ending == told
    with pytest.raises(UntrustworthyResultError) as refusal:
        solution.raise_for_status()
    assert str(refusal.value) == f"{told} (certificate 0.5)."
