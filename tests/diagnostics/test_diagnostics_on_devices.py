"""Diagnostics of tensors run where the tensors are; the count of lost modes alone moves the taps."""

import pytest
from cases import random
from devices import DOUBLE, ForeignTensorError, check_without_numbers, replay

from deconv_cli.diagnostics.boundary_modes import count_lost_modes
from deconv_cli.diagnostics.conditioning import measure_conditioning, measure_resolution, removed_share
from deconv_cli.diagnostics.residual import border_profile, summarize_residual
from deconv_cli.diagnostics.residual_tests import check_residual
from deconv_cli.diagnostics.spectra import FadedImages
from deconv_cli.diagnostics.torus_modes import InverseFilter, ModeBands, torus_modes
from deconv_cli.operators.axes import inner
from deconv_cli.operators.geometry import Pads


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
        pytest.param((examine, random((3, n_outputs, 40, 36)), n_inputs), id=f"page-{n_outputs}-{n_inputs}")
        for n_outputs, n_inputs in [(1, 1), (2, 2), (3, 2)]
    ),
    pytest.param((look_at, random((2, 3, 9, 8))), id="residual"),
]


@pytest.mark.parametrize("case", TASKS)
def test_nothing_leaves_the_device(case):
    check_without_numbers(*case)


@pytest.mark.parametrize("case", TASKS)
def test_nothing_needs_double_precision_where_there_is_none(case):
    task, given, *settings = case
    check_without_numbers(task, given.float(), *settings, device="mps", barred=DOUBLE)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_pencil_test_moves_the_taps_before_anything_else(device):
    """To the CPU first and to double precision there: the other way round would need it on the device."""
    with pytest.raises(ForeignTensorError, match=r"aten\._to_copy\.default meets a tensor on cpu"):
        replay(count_lost_modes, (random((2, 2, 3, 3)).float(), Pads((1, 1), (1, 1)), (9, 9), 1e-3), [], device, DOUBLE)
