"""λ, predictions and diagnostics are computed where the data are; the count of lost modes alone moves the taps."""

import pytest
from cases import random
from devices import DOUBLE, ForeignTensorError, cases, check_on_cuda, check_without_numbers, needs_cuda, replay

from deconv_cli.diagnostics.boundary_modes import count_lost_modes
from deconv_cli.diagnostics.conditioning import measure_conditioning, measure_resolution, removed_share
from deconv_cli.diagnostics.error_prediction import ErrorPredictor
from deconv_cli.diagnostics.image_model import fit_image_model
from deconv_cli.diagnostics.lambda_choice import choose_lambda
from deconv_cli.diagnostics.periodic_extension import PeriodicExtension
from deconv_cli.diagnostics.residual import border_profile, summarize_residual
from deconv_cli.diagnostics.residual_tests import check_residual
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.torus_modes import InverseFilter, ModeBands, torus_modes
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.axes import inner
from deconv_cli.operators.geometry import Pads
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.direct import DirectSolver
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import LambdaRule


def look_at(residual):
    """The results are numbers; the last tensor shows that they were computed on the device of the residual."""
    assert summarize_residual(residual, 2 * residual).relative > 0
    assert border_profile(residual, (3, 5))[0].residual_rms > 0
    return inner(residual, residual, 2)


def examine(data, n_inputs):
    """The numbers of a page, with taps cut out of the data; the function returns the modes."""
    taps, residual = data[:n_inputs, :, :3, :3].transpose(0, 1), 0.5 * data.roll(3, -1)
    modes = torus_modes(taps, (residual.shape[-2], residual.shape[-1]))
    inverse = InverseFilter(0.1, "gradient", 1e-6)
    assert measure_conditioning(modes, inverse).noise_gain > 0
    found = check_residual(residual, FadedImages.of(data, 2), ModeBands(modes, inverse), kernel_size=(3, 3))
    assert found.implausible_share >= 0
    assert measure_resolution(taps, (8, 8), inverse)
    assert removed_share(taps, (8, 9), 0.5) >= 0
    spectrum = modes.transformed(data)
    assert modes.null_share(modes.of_outputs(spectrum), spectrum, 0.5) > 0
    return modes.sigma, modes.u


TASKS = [
    *(
        pytest.param(examine, random((3, n_outputs, 40, 36)), n_inputs, id=f"page-{n_outputs}-{n_inputs}")
        for n_outputs, n_inputs in [(1, 1), (2, 2), (3, 2)]
    ),
    pytest.param(look_at, random((2, 3, 9, 8)), id="residual"),
]


EXHAUSTIVE = pytest.mark.exhaustive
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


SLOW = [
    *(
        pytest.param(choose, MIXING[:n, :n], DATA, boundary, rule, id=f"choice-{n}-{boundary}-{rule}", marks=EXHAUSTIVE)
        for n, boundary, rule in [
            (1, "circular", LambdaRule.GCV),
            (1, "unknown", LambdaRule.UPRE),
            (2, "unknown", LambdaRule.GCV),
            (2, "circular", LambdaRule.WHITENESS),
            (2, "circular", LambdaRule.DISCREPANCY),
        ]
    ),
    *(
        pytest.param(predict, MIXING[:n, :n], DATA, boundary, id=f"prediction-{n}-{boundary}", marks=EXHAUSTIVE)
        for n, boundary in [(1, "unknown"), (2, "circular"), (2, "reflect")]
    ),
]


@cases(*TASKS, *SLOW)
def test_nothing_leaves_the_device(case):
    check_without_numbers(*case)


@cases(*TASKS, *SLOW)
def test_nothing_needs_double_precision_where_there_is_none(case, monkeypatch):
    # What the run on the CPU would do in double precision.
    monkeypatch.setattr(NormalEquations, "in_float64", lambda _: None)
    monkeypatch.setattr(DirectSolver, "covers", lambda *_: "needs double precision")
    task, *inputs = case
    narrow = [value.float() if hasattr(value, "float") else value for value in inputs]
    check_without_numbers(task, *narrow, device="mps", barred=DOUBLE)


@needs_cuda
@cases(*[case for case in SLOW if case.values[0] is choose])
def test_cuda_agrees_with_the_cpu(case):
    """Predictions draw random numbers, which differ from device to device."""
    check_on_cuda(*case, tolerance=1e-3)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_pencil_test_moves_the_taps_before_anything_else(device):
    """To the CPU first and to double precision there: the other way round would need it on the device."""
    with pytest.raises(ForeignTensorError, match=r"aten\._to_copy\.default meets a tensor on cpu"):
        replay(count_lost_modes, (random((2, 2, 3, 3)).float(), Pads((1, 1), (1, 1)), (9, 9), 1e-3), [], device, DOUBLE)
