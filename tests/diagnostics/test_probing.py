"""Power by gain that is probed, and what is made of it for layers, held against dense matrices."""

from __future__ import annotations

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.lambda_choice import choose_lambda_by_probing
from deconv_cli.diagnostics.lambda_rules import PowerByGain, choose_by_rule
from deconv_cli.diagnostics.probing import MAX_PROBES, GolubKahan, ProbedPower, fit_probed_image_model
from deconv_cli.layer_options import LayerOptions
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.vocabulary import LambdaRule

LAYERS = {
    "strided and grouped": ((12, 1, 3, 3), {"stride": 2, "groups": 2}),
    "dilated": ((3, 2, 2, 2), {"dilation": 3}),
    "transposed": ((2, 3, 3, 3), {"transposed": True, "stride": 2}),
}


def layer(name: str, size: tuple[int, ...] = (6, 5)) -> LayerConvolution:
    shape, options = LAYERS[name]
    return LayerConvolution(random(shape, seed=1), size, LayerOptions(**options), padding=1)


def exact(operator: LayerConvolution, y: torch.Tensor) -> PowerByGain:
    u, values, _ = torch.linalg.svd(operator.as_matrix(), full_matrices=False)
    power = (y.flatten(1) @ u).square().sum(0)
    ratio = values.square() / operator.spectrum.sigma_max**2
    outside = y.square().sum() - power.sum()
    return PowerByGain(ratio, power, outside, ratio, torch.full_like(ratio, len(y)), float(y.numel()))


@pytest.mark.parametrize("name", LAYERS)
def test_the_quadrature_is_exact_where_it_has_taken_all_steps(name: str) -> None:
    operator = layer(name)
    y = random((2, *operator.output_shape), seed=2)
    process = GolubKahan(operator, y)
    process.extend(80)
    values, weights, rest = process.quadrature()
    matrix = operator.as_matrix()
    for weight in (0.01, 1.0):
        influence = matrix @ torch.linalg.solve(
            matrix.T @ matrix + weight * torch.eye(matrix.shape[1]).double(), matrix.T
        )
        left = y.flatten(1) - y.flatten(1) @ influence
        found = (weights * (weight / (values + weight)).square()).sum(-1) + rest
        assert torch.allclose(found, left.square().sum(-1), rtol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", [LambdaRule.UPRE, LambdaRule.DISCREPANCY, LambdaRule.ML])
def test_lambda_of_a_layer_is_that_of_its_singular_values(name: str, rule: LambdaRule) -> None:
    operator = layer(name, (16, 14))
    noise = 0.3 * random((2, *operator.output_shape), seed=4)
    y = operator.forward(random((2, *operator.input_shape), seed=3)) + noise
    choice = choose_lambda_by_probing(operator, y, operator.spectrum.sigma_max, rule=rule, sigma=0.3)
    expected = choose_by_rule(rule, exact(operator, y), 0.3).chosen
    assert choice.is_converged
    assert choice.lam == pytest.approx(expected, rel=0.25)


def test_the_noise_of_a_layer_with_more_outputs_than_inputs_is_found() -> None:
    operator = layer("strided and grouped", (24, 20))
    y = operator.forward(random(operator.input_shape, seed=3)) + 0.3 * random(operator.output_shape, seed=4)
    assert choose_lambda_by_probing(operator, y, 1.0).sigma == pytest.approx(0.3, rel=0.05)


def test_probes_count_the_singular_values() -> None:
    operator = layer("transposed")
    y = random((3, *operator.output_shape), seed=2)
    probed = ProbedPower(operator, y, operator.spectrum.sigma_max)
    probed.extend(80)
    found, expected = probed.by_gain(), exact(operator, y)
    count, known = ((of.count * (of.count_ratio > 0.1)).sum() for of in (found, expected))
    # What n random signs tell of m values is wrong by about √(2m / n).
    assert float(count) == pytest.approx(float(known), abs=3 * 3 * (2 * float(known) / 3 / MAX_PROBES) ** 0.5)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_the_model_of_an_image_is_found_behind_a_stride(exponent: float) -> None:
    operator = LayerConvolution(random((5, 1, 3, 3), seed=5), (48, 40), LayerOptions(stride=2), padding=1)
    drawn = ImageModel.isotropic(exponent, torch.eye(1, dtype=torch.float64), (48, 40))
    x = 3 * drawn.draw(1, (64, 64), seed=6, dtype=torch.float64)[0, :, :48, :40]
    y = operator.forward(x) + 0.2 * random(operator.output_shape, seed=7)
    found = fit_probed_image_model(operator, y, x)
    assert found.exponent == pytest.approx(exponent, abs=0.01)
    assert found.sigma == pytest.approx(0.2, rel=0.25)


def picture(n: int = 28) -> torch.Tensor:
    """Three channels that are alike, with amplitudes of about 1 / θ."""
    model = ImageModel.isotropic(1.0, torch.eye(1, dtype=torch.float64), (n, n))
    return 5 + model.draw(1, (64, 64), seed=8, dtype=torch.float64)[0, :, :n, :n] * torch.ones(3, 1, 1)


PREDICTED = {
    "strided": ((16, 3, 5, 5), {"stride": 2, "padding": 2}),
    "dilated and grouped": ((6, 1, 3, 3), {"dilation": 2, "padding": 2, "groups": 3}),
    "transposed": ((3, 4, 4, 4), {"transposed": True, "stride": 2, "padding": 1}),
}


@pytest.mark.parametrize(
    "name", [name if name == "transposed" else pytest.param(name, marks=pytest.mark.exhaustive) for name in PREDICTED]
)
def test_the_error_of_a_layer_is_predicted(name: str) -> None:
    shape, options = PREDICTED[name]
    x, kernel = picture(), random(shape, seed=9) / 8
    y = deconv_cli.forward(x, kernel, **options)
    y = y + 0.1 * random(tuple(y.shape), seed=10)
    result = deconv_cli.invert(y, kernel, lam="auto", predict=True, truth=x, **options)
    predicted = result.predicted_error
    assert predicted is not None
    assert result.lambda_choice is not None
    assert predicted.actual_root_mean_square == pytest.approx(predicted.root_mean_square, rel=0.3)
    errors = [
        float((deconv_cli.invert(y, kernel, lam=lam, **options).image - x).norm()) for lam in (1e-4, 1e-3, 1e-2, 1e-1)
    ]
    assert float((result.image - x).norm()) < 1.1 * min(errors)


@pytest.mark.parametrize("lam", [0.0, 1e-4])
def test_the_lost_brightness_of_a_layer_is_a_part_of_its_error(lam: float) -> None:
    """Fewer outputs than inputs leave a part of the mean open too, so that the mean of the estimate is too small."""
    x, kernel = 1 + 0.1 * picture(24), random((4, 3, 3, 3), seed=9) / 3
    y = deconv_cli.forward(x, kernel, stride=2, padding=1)
    y = y + 0.01 * random(tuple(y.shape), seed=10)
    result = deconv_cli.invert(y, kernel, lam=lam, predict=True, truth=x, stride=2, padding=1)
    predicted = result.predicted_error
    assert predicted is not None
    assert predicted.actual_root_mean_square == pytest.approx(predicted.root_mean_square, rel=0.1)
    assert not result.is_condition_known


def test_pixels_that_no_output_depends_on_are_trusted_nowhere() -> None:
    x, kernel = picture(16), random((8, 3, 1, 1), seed=11)
    y = deconv_cli.forward(x, kernel, stride=2)
    predicted = deconv_cli.invert(y, kernel, stride=2, lam=1e-6, predict=True).predicted_error
    assert predicted is not None
    assert not predicted.trusted[1::2].any()
    assert not predicted.trusted[:, 1::2].any()


def squared_errors(y: torch.Tensor, kernel: torch.Tensor, x: torch.Tensor, **options: object) -> list[float]:
    lams = [10.0**power for power in (-8, -6, -5, -4, -3, -2, -1)]
    return [float((deconv_cli.invert(y, kernel, lam=lam, **options).image - x).square().sum()) for lam in lams]


@pytest.mark.parametrize("penalty", [pytest.param("identity", marks=pytest.mark.exhaustive), "gradient"])
def test_lambda_of_a_layer_with_fewer_outputs_than_inputs_loses_little(penalty: str) -> None:
    x, kernel = picture(16), random((3, 1, 3, 3), seed=12)
    layer = {"stride": 2, "groups": 3, "padding": 1, "penalty": penalty}
    y = deconv_cli.forward(x, kernel, stride=2, groups=3, padding=1)
    y = y + 0.05 * random(tuple(y.shape), seed=13)
    result = deconv_cli.invert(y, kernel, lam="auto", **layer)
    best = min(squared_errors(y, kernel, x, **layer))
    choice = result.lambda_choice
    assert float((result.image - x).square().sum()) < 1.1 * best
    assert choice is not None
    assert choice.rule is LambdaRule.UPRE
    assert choice.is_sigma_modeled
    assert "by a model of the image" in choice.reason
    assert choice.warning is None


def test_cross_validation_is_doubted_where_it_takes_the_image_for_noise() -> None:
    x, kernel = picture(16), random((3, 1, 3, 3), seed=12)
    y = deconv_cli.forward(x, kernel, stride=2, groups=3, padding=1)
    y = y + 0.05 * random(tuple(y.shape), seed=13)
    choice = deconv_cli.invert(y, kernel, lambda_rule="gcv", stride=2, groups=3, padding=1).lambda_choice
    assert choice is not None
    assert choice.cross_check.rule is LambdaRule.UPRE
    assert choice.warning is not None
