"""λ is chosen, and the error predicted, where the data are."""

import pytest
from cases import random
from devices import DOUBLE, cases, check_on_cuda, check_without_numbers, needs_cuda

from deconv_cli.diagnostics.error_prediction import ErrorPredictor
from deconv_cli.diagnostics.image_model import fit_image_model
from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.direct import DirectSolver
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import LambdaRule

pytestmark = pytest.mark.exhaustive

SIZE = (14, 12)
MIXING = random((2, 2, 3, 3)).abs()
DATA = random((2, *SIZE), seed=1)
# The memory that is free is asked of the device, which is not there.
MEMORY = 2**40


def choose(taps, y, boundary, rule):
    """The result is a number; the product with the data shows that it was computed on their device."""
    kernel = Kernel(taps, shared=taps.shape[0] == 1)
    options = {"boundary": boundary, "penalty": "gradient", "max_memory": MEMORY}
    return y * choose_lambda(PeriodicExtension(kernel, SIZE, **options), y, rule=rule).lam


def predict(taps, y, boundary):
    kernel = Kernel(taps, shared=taps.shape[0] == 1)
    settings = ResolvedSettings(padding="same", boundary=boundary, lam=1e-2, penalty="gradient", max_memory=MEMORY)
    inverse = PseudoInverse(kernel, SIZE, settings)
    estimate = inverse(y).detach()
    extension = PeriodicExtension(kernel, SIZE, boundary=boundary, penalty="gradient", max_memory=MEMORY)
    model = fit_image_model(extension, y, estimate, lam=1e-2)
    predictor = ErrorPredictor(inverse, n_probes=2)
    found = predictor.predict(estimate, model, truth=2 * estimate)
    return found.map, found.trusted


CASES = [
    *(
        pytest.param(choose, MIXING[:n, :n], DATA, boundary, rule, id=f"choice-{n}-{boundary}-{rule}")
        for n, boundary, rule in [
            (1, "circular", LambdaRule.GCV),
            (1, "unknown", LambdaRule.UPRE),
            (2, "unknown", LambdaRule.GCV),
            (2, "circular", LambdaRule.WHITENESS),
            (2, "circular", LambdaRule.DISCREPANCY),
        ]
    ),
    *(
        pytest.param(predict, MIXING[:n, :n], DATA, boundary, id=f"prediction-{n}-{boundary}")
        for n, boundary in [(1, "unknown"), (2, "circular"), (2, "reflect")]
    ),
]


@cases(*CASES)
def test_nothing_leaves_the_device(case):
    check_without_numbers(*case)


@cases(*CASES)
def test_nothing_needs_double_precision_where_there_is_none(case, monkeypatch):
    # What the run on the CPU would do in double precision.
    monkeypatch.setattr(NormalEquations, "in_float64", lambda _: None)
    monkeypatch.setattr(DirectSolver, "covers", lambda *_: "needs double precision")
    task, *inputs = case
    narrow = [value.float() if hasattr(value, "float") else value for value in inputs]
    check_without_numbers(task, *narrow, device="mps", barred=DOUBLE)


@needs_cuda
@cases(*[case for case in CASES if case.values[0] is choose])
def test_cuda_agrees_with_the_cpu(case):
    """Predictions draw random numbers, which differ from device to device."""
    check_on_cuda(*case, tolerance=1e-3)
