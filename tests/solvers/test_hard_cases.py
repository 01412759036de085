"""Problems on which an inverse could be wrong and say that it is right."""

import pytest
import torch
from cases import dense_tikhonov, random

import deconv_cli
from deconv_cli.errors import UsageError

BOX = {k: torch.ones(k, k, dtype=torch.float64) / k**2 for k in (3, 4, 5)}


def judged(kernel, size, boundary, method="auto", lam=0.0, penalty="identity"):
    """Restore the output of an image, and compare with the dense answer."""
    P = deconv_cli.pseudo_inverse(
        torch.as_tensor(kernel, dtype=torch.float64),
        input_size=size,
        boundary=boundary,
        lam=lam,
        penalty=penalty,
        method=method,
    )
    operator = P.problem.operator
    y = operator.forward(random(operator.input_shape))
    solution = P.solve(y)
    expected = dense_tikhonov(operator, y, P.problem.weight, P.problem.penalty_operator if lam > 0 else None)
    error = (solution.value - expected).norm() / expected.norm()
    return float(error), solution.status.is_success


@pytest.mark.parametrize("method", ["auto", "iterative"])
@pytest.mark.parametrize(
    ("kernel", "size", "boundary"),
    [
        (BOX[3], (12, 14), "zero"),
        (BOX[3], (15, 15), "symmetric"),
        (BOX[5], (17, 17), "zero"),
        (BOX[4], (15, 15), "reflect"),
        ([[0.2] * 5], (12, 14), "zero"),
        ([[0.0, 0.0, 1.0]], (10, 11), "zero"),
    ],
)
def test_images_that_the_border_loses_stay_out_of_the_answer(kernel, size, boundary, method):
    """Box filters and shifts have a null space under these borders: the least answer has nothing of it."""
    error, is_success = judged(kernel, size, boundary, method)
    assert error <= 1e-4 or not is_success


@pytest.mark.parametrize("penalty", ["gradient", "laplacian"])
def test_constants_that_only_the_border_shows(penalty):
    error, is_success = judged([[-1.0, 0.0, 1.0]], (16, 17), "zero", lam=1e-3, penalty=penalty)
    assert is_success
    assert error <= 1e-6
    with pytest.raises(UsageError, match="constants under a circular boundary"):
        judged([[-1.0, 0.0, 1.0]], (16, 17), "zero", "strip", 1e-3, penalty)


def test_ramps_that_nothing_sees_are_refused():
    with pytest.raises(UsageError, match="at a constant rate"):
        judged([[-1.0, 0.0, 1.0]], (9, 8), "reflect", lam=1e-3, penalty="laplacian")


def test_the_gain_of_a_kernel_on_an_image_one_pixel_wide():
    kernel = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64)
    P = deconv_cli.pseudo_inverse(kernel, input_size=(20, 1), boundary="zero", lam=1e-3)
    assert P.spectrum.sigma_max > 1
    x = random((1, 20, 1))
    assert (P(deconv_cli.forward(x, kernel)) - x).norm() <= 0.01 * x.norm()


@pytest.mark.parametrize("boundary", ["unknown", "circular", "zero"])
@pytest.mark.parametrize("unit", [2.0**-80, 2.0**-126, 2.0**66])
def test_the_unit_of_the_data_does_not_matter(unit, boundary):
    kernel = random((5, 5), dtype=torch.float32).abs()
    P = deconv_cli.pseudo_inverse(kernel, input_size=(24, 25), boundary=boundary, lam=1e-3, penalty="gradient")
    y = random((2, 1, 24, 25), dtype=torch.float32)
    y[1] *= unit
    together = P.solve(y)
    assert together.status.is_success
    alone = P.solve(y[1:] / unit)
    assert together.certificate <= 1e-5
    assert (together.value[1] / unit - alone.value[0]).norm() <= 1e-4 * alone.value.norm()
