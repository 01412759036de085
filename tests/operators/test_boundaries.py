"""Boundary rules describe themselves, and extend images as numpy does, in one, two and three dimensions."""

import itertools

import numpy as np
import pytest
import torch
from cases import random
from custom_rules import CUSTOM_RULES, Antisymmetric, Fading, registered
from properties import adjoint_defect, backward_defect, linearity_defect, matrix_defect

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.extension import Extension
from deconv_cli.operators.geometry import Geometry, Pads

NUMPY_MODES = {
    "zero": "constant",
    "circular": "wrap",
    "reflect": "reflect",
    "symmetric": "symmetric",
    "replicate": "edge",
}
# Image sizes with pads, uneven and partly none; no wider than a mirror image allows.
LAYOUTS = [
    ((5,), Pads((3,), (4,))),
    ((5, 6), Pads((0, 2), (4, 1))),
    ((4, 5), Pads((2, 0), (1, 0))),
    ((3, 4, 5), Pads((2, 1, 0), (1, 3, 4))),
]


def extension(size, pads, rule, n_channels=2):
    kernel_size = tuple(1 for _ in size)
    return Extension(Geometry(size, kernel_size, pads), n_channels, rule)


@pytest.mark.parametrize("name", NUMPY_MODES)
@pytest.mark.parametrize(("size", "pads"), LAYOUTS)
def test_extensions_are_those_of_numpy(name, size, pads):
    operator = extension(size, pads, as_rule(name))
    x = random((3, 2, *size))
    widths = [(0, 0), (0, 0), *zip(pads.before, pads.after, strict=True)]
    expected = torch.from_numpy(np.pad(x.numpy(), widths, mode=NUMPY_MODES[name]))
    assert torch.equal(operator.forward(x), expected)


@pytest.mark.parametrize("rule", [*(as_rule(name) for name in NUMPY_MODES), *CUSTOM_RULES], ids=lambda rule: rule.name)
@pytest.mark.parametrize(("size", "pads"), LAYOUTS)
def test_extensions_keep_the_laws(rule, size, pads):
    operator = extension(size, pads, rule)
    assert adjoint_defect(operator) <= 1e-13
    assert linearity_defect(operator) <= 1e-13
    assert matrix_defect(operator) <= 1e-13
    assert backward_defect(operator) <= 1e-13


@pytest.mark.parametrize(("size", "pads"), LAYOUTS)
def test_copies_carry_factors_that_multiply_around_corners(size, pads):
    """Pixel by pixel: the sign changes with each axis along which a pixel lies outside."""
    x = random((1, *size))
    found = extension(size, pads, Antisymmetric(), n_channels=1).forward(x)
    for at in itertools.product(*(range(n) for n in found.shape[1:])):
        value, sign = x[0], 1
        for i, before, n in zip(at, pads.before, size, strict=True):
            i -= before
            sign *= -1 if i < 0 or i >= n else 1
            value = value[-1 - i if i < 0 else 2 * n - 1 - i if i >= n else i]
        assert float(found[0][at]) == sign * float(value)


def test_factors_may_depend_on_the_position():
    found = extension((3,), Pads((2,), (3,)), Fading(), n_channels=1).forward(torch.tensor([[4.0, 5.0, 8.0]]))
    assert found.tolist() == [[1.0, 2.0, 4.0, 5.0, 8.0, 4.0, 2.0, 1.0]]


def test_factors_keep_the_dtype_of_the_image():
    for rule in CUSTOM_RULES:
        assert extension((5, 6), Pads((1, 1), (1, 1)), rule).forward(random((2, 5, 6)).float()).dtype == torch.float32


@pytest.mark.parametrize("rule", CUSTOM_RULES, ids=lambda rule: rule.name)
def test_a_rule_of_the_users_own_goes_by_its_name_once_it_is_registered(rule):
    kernel = random((2, 3, 3, 4))
    by_object = Convolution(kernel, (7, 6), boundary=rule)
    assert adjoint_defect(by_object) <= 1e-12
    with pytest.raises(UsageError, match=f"is '{rule.name}'"):
        Convolution(kernel, (7, 6), boundary=rule.name)
    with registered(rule):
        by_name = Convolution(kernel, (7, 6), boundary=rule.name)
    assert torch.equal(by_name.as_matrix(), by_object.as_matrix())
    assert by_name.boundary is rule


@pytest.mark.parametrize(("name", "slack"), [("reflect", 1), ("symmetric", 0), ("circular", 0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_border_may_be_as_wide_as_the_rule_can_supply_and_no_wider(name, slack, axis):
    size = tuple(4 if i == axis else 9 for i in range(3))
    widest = tuple(4 - slack if i == axis else 0 for i in range(3))
    too_wide = tuple(n + (i == axis) for i, n in enumerate(widest))
    assert extension(size, Pads((0, 0, 0), widest), as_rule(name)).output_shape[axis + 1] == 8 - slack
    with pytest.raises(ShapeError, match=rf"{name} boundary; use a larger image, or boundary zero, replicate or unkn"):
        extension(size, Pads(too_wide, (0, 0, 0)), as_rule(name))
