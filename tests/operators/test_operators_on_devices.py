"""Every operator runs on the device of its tensors from end to end: proved without a device, compared where one is."""

import itertools

import pytest
import torch
from cases import random
from devices import DOUBLE, ForeignTensorError, check_on_cuda, check_without_numbers, needs_cuda, replay

from deconv_cli.operators import synchronize
from deconv_cli.operators.boundary_rules import as_rule
from deconv_cli.operators.circulant import BlockCirculant, torus_symbol
from deconv_cli.operators.convolution import Convolution, ValidCorrelation
from deconv_cli.operators.differences import Differences, first_differences, second_differences
from deconv_cli.operators.extension import Extension, close_smoothly
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import kernel_spectrum, peak_gain
from deconv_cli.parts import BOUNDARIES, PENALTIES
from deconv_cli.regularizers import find_penalty

SIZE = (7, 6)
FIRST, SECOND = first_differences(2), second_differences(2)


def both_ways(operator, like):
    """Apply an operator and its adjoint to tensors of the dtype and on the device of another one."""
    x = like.new_ones(2, *operator.input_shape)
    image = operator.forward(x)
    return image, operator.adjoint(image), (3.0 * operator.gram).forward(x)


def extend(like, boundary):
    return both_ways(Extension(Geometry.of_image(SIZE, (3, 4), "same"), 2, as_rule(boundary)), like)


def close(like):
    return close_smoothly(like, (12, 9))


def correlate(taps, use_fft):
    return both_ways(ValidCorrelation(taps, SIZE, use_fft=use_fft), taps)


def convolve(taps, boundary):
    operator = Convolution.of_geometry(taps, Geometry.of_image(SIZE, tuple(taps.shape[2:]), "same"), boundary)
    return *both_ways(operator, taps), operator.crop_to_frame(taps.new_ones(operator.input_shape))


def difference(like, terms, periodic):
    symbols = [term.symbol(SIZE, like.dtype, like.device) for term in terms]
    return both_ways(Differences((2, *SIZE), terms, periodic=periodic), like), symbols


def circulate(taps):
    symbol = torus_symbol(taps, SIZE, (1, 1))
    operator = BlockCirculant(symbol, SIZE)
    return both_ways(operator, taps), operator.blocks.matrices


def penalize(like, penalty):
    return find_penalty(penalty).symbol(SIZE, like.dtype, like.device)


def describe(taps, size=SIZE):
    """Extreme singular values are numbers of the host; the gain at the peak is a tensor."""
    spectrum = kernel_spectrum(taps, size)
    assert spectrum.condition >= 1
    return peak_gain(taps, spectrum)


BLUR = random((1, 1, 3, 3)).abs()
MANY_CHANNELS = random((5, 5, 3, 2))
TASKS = [
    *(pytest.param(extend, BLUR, b, id=f"extension-{b}") for b in BOUNDARIES if b != "unknown"),
    pytest.param(close, random((2, 7, 6)), id="close-smoothly"),
    *(pytest.param(correlate, random((3, 2, 3, 2)), f, id=f"correlation-{'fft' if f else 'taps'}") for f in (0, 1)),
    *(pytest.param(convolve, random((2, 3, 3, 4)), b, id=f"convolution-{b}") for b in BOUNDARIES),
    *(
        pytest.param(difference, BLUR, terms, periodic, id=f"differences-{name}-{'torus' if periodic else 'frame'}")
        for (name, terms), periodic in itertools.product([("first", FIRST), ("second", SECOND)], (False, True))
    ),
    pytest.param(circulate, random((2, 2, 3, 3)), id="circulant-planes"),
    pytest.param(circulate, BLUR, id="circulant-scalars"),
    pytest.param(circulate, MANY_CHANNELS, id="circulant-blocks"),
    pytest.param(circulate, random((5, 5, 3, 11)), id="circulant-many-taps"),
    *(pytest.param(penalize, BLUR, p, id=f"penalty-{p}") for p in PENALTIES),
    pytest.param(describe, BLUR, id="spectrum-blur"),
    pytest.param(describe, random((1, 2, 3, 3)), id="spectrum-one-output"),
    pytest.param(describe, random((2, 3, 3, 3)), (24, 33), id="spectrum-search"),
]


@pytest.mark.parametrize("case", [pytest.param(p.values, id=p.id) for p in TASKS])
class TestDevices:
    def test_nothing_leaves_the_device(self, case):
        check_without_numbers(*case)

    def test_nothing_needs_double_precision_where_there_is_none(self, case):
        task, taps, *settings = case
        check_without_numbers(task, taps.float(), *settings, device="mps", barred=DOUBLE)

    @needs_cuda
    def test_cuda_agrees_with_the_cpu(self, case):
        check_on_cuda(*case)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        pytest.param(lambda x: x + torch.ones(3, 4), ForeignTensorError, id="another-device"),
        pytest.param(lambda x: x + torch.arange(4), ForeignTensorError, id="indices"),
        pytest.param(lambda x: x * torch.tensor(2.0), ForeignTensorError, id="single-number"),
        pytest.param(lambda x: x[torch.tensor([0, 1])], ForeignTensorError, id="index"),
        pytest.param(lambda x: x + x.cpu().to(x.device), ForeignTensorError, id="there-and-back"),
        pytest.param(lambda x: x.numpy(), RuntimeError, id="numpy"),
        pytest.param(lambda x: x * float(x.sum()), RuntimeError, id="number"),
        pytest.param(lambda x: x if x.any() else -x, RuntimeError, id="branch"),
        pytest.param(lambda x: x[x > 0], RuntimeError, id="mask"),
    ],
)
def test_the_harness_notices(mistake, error):
    with pytest.raises(error):
        replay(mistake, (random((3, 4)),), [], "cuda", frozenset())


def test_the_harness_notices_double_precision():
    with pytest.raises(ForeignTensorError, match="float64"):
        check_without_numbers(lambda x: x.double().float(), random((3, 4)).float(), device="mps", barred=DOUBLE)


def test_the_harness_follows_what_the_host_read():
    def branch(x):
        return x[synchronize.places(x > 0)] if synchronize.holds_anywhere(x > 0) else x.double()

    positive = check_without_numbers(branch, torch.tensor([1.0, -1.0, 2.0]))
    assert [name for name, _ in positive] == ["holds_anywhere", "places"]
    assert check_without_numbers(branch, torch.tensor([-1.0])) == [("holds_anywhere", False)]


def test_the_host_reads_what_is_there():
    values = torch.tensor([3, 1, 3, 2])
    different, index = synchronize.distinct(values)
    assert torch.equal(different[index], values)
    assert len(different) == 3
    assert synchronize.places(values == 3).tolist() == [0, 2]
    assert synchronize.holds_anywhere(values == 2)
    assert not synchronize.holds_anywhere(values == 5)
    assert not synchronize.holds_everywhere(values == 3)
    assert synchronize.holds_everywhere(values > 0)
    assert synchronize.as_number(values[:1]) == 3.0
    assert synchronize.as_numbers(values) == [3.0, 1.0, 3.0, 2.0]
    assert synchronize.as_index(values[3]) == 2
