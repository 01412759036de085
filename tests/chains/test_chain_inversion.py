"""Chains of layers undone: affine ones by their pseudo-inverse, others by damped Gauss–Newton steps."""

import math
import re

import pytest
import torch
from cases import random
from torch import nn

import deconv_cli
from deconv_cli.chains import chain_inversion
from deconv_cli.chains.chain_inversion import ChainMethod
from deconv_cli.chains.chain_layers import compose, input_shape_of, list_parts
from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.operators.linear_operator import Linearization
from deconv_cli.regularizers import find_penalty
from deconv_cli.solvers.solution import Status
from deconv_cli.solvers.solve import largest_singular_value_of

DOUBLE = torch.zeros(1, dtype=torch.float64)


def trained(*layers, seed=0):
    """Layers with He's random weights, and statistics as if they had been trained, in double precision."""
    torch.manual_seed(seed)
    net = nn.Sequential(*layers).double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return net.requires_grad_(False)


class Residual(nn.Module):
    """A residual block, as in ResNet-18."""

    def __init__(self, n):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def error(result, x):
    return float((result.image - x).norm() / x.norm())


AFFINE = [
    ((2, 9), [nn.Conv1d(2, 5, 3, stride=2, padding=1, padding_mode="circular"), nn.AvgPool1d(2, 1)]),
    ((2, 8, 9), [nn.ReflectionPad2d(2), nn.Conv2d(2, 8, 3, dilation=2, groups=2), nn.BatchNorm2d(8)]),
    ((3, 8, 8), [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Upsample(scale_factor=2, mode="bilinear")]),
    ((4, 6, 5), [nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), nn.PixelUnshuffle(2)]),
    ((4, 5, 5), [nn.PixelShuffle(2), nn.Dropout(), nn.Conv2d(1, 3, 3, bias=False), nn.AdaptiveAvgPool2d(4)]),
    ((1, 4, 5, 6), [nn.Conv3d(1, 3, 3, padding=1), nn.AvgPool3d(2, 1), nn.Identity()]),
]


@pytest.mark.parametrize(("shape", "layers"), AFFINE, ids=[str(n) for n in range(len(AFFINE))])
def test_an_affine_chain_is_undone_by_its_pseudo_inverse(shape, layers):
    net = trained(*layers)
    zero = net(torch.zeros(1, *shape).double())[0]
    columns = net(torch.eye(math.prod(shape)).double().reshape(-1, *shape)) - zero
    matrix = columns.flatten(1).T
    y = random(tuple(zero.shape), seed=1)  # not in the range
    result = deconv_cli.invert_chain(y, net, input_size=shape[1:])
    exact = (torch.linalg.pinv(matrix) @ (y - zero).flatten()).reshape(shape)
    torch.testing.assert_close(result.image, exact, rtol=1e-9, atol=1e-9)
    assert result.method is ChainMethod.LEAST_SQUARES
    assert result.determined.is_exact
    assert result.determined.share == torch.linalg.matrix_rank(matrix) / math.prod(shape)


def test_a_larger_affine_chain_is_iterated(monkeypatch):
    monkeypatch.setattr(chain_inversion, "MAX_DENSE_ENTRIES", 0)
    net = trained(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
    x = random((1, 12, 12), seed=1)
    result = deconv_cli.invert_chain(net(x[None])[0], net)
    assert result.solution.n_iterations > 1
    assert error(result, x) < 1e-7


@pytest.mark.parametrize("penalty", ["identity", "gradient"])
def test_lambda_is_that_of_tikhonov(penalty):
    net = trained(nn.Conv2d(1, 2, 3, bias=False))
    A = net(torch.eye(49).double().reshape(-1, 1, 7, 7)).flatten(1).T
    L = find_penalty(penalty).operator((1, 7, 7), periodic=False).as_matrix()
    y = random((2, 5, 5), seed=1)
    result = deconv_cli.invert_chain(y, net, lam=0.01, penalty=penalty)
    zeros = torch.zeros(1, 7, 7).double()
    sigma_max = largest_singular_value_of(Linearization(net, zeros), zeros)
    assert sigma_max == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=0.02)
    exact = torch.linalg.solve(A.T @ A + 0.01 * sigma_max**2 * L.T @ L, A.T @ y.flatten())
    torch.testing.assert_close(result.image.flatten(), exact, rtol=1e-9, atol=1e-9)


def test_a_penalty_on_differences_fills_in_what_the_data_leave_open():
    net = trained(nn.Conv2d(1, 16, 5, stride=3, padding=2), nn.LeakyReLU(0.2), nn.AvgPool2d(2))
    ramp = torch.linspace(-1, 1, 24).double()
    x = (ramp[:, None] + ramp.square())[None]
    y = net(x[None])[0]
    without = deconv_cli.invert_chain(y, net)
    smooth = deconv_cli.invert_chain(y, net, lam=1e-4, penalty="gradient")
    assert without.determined.share < 0.9
    assert error(smooth, x) < 0.5 * error(without, x)
    assert smooth.relative_residual < 0.05
    assert smooth.penalty == "gradient"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_conv_norm_relu_is_undone(dtype):
    net = trained(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    x = random((2, 3, 12, 12), seed=1)
    y = net(x).to(dtype)
    result = deconv_cli.invert_chain(y, net)
    accuracy = max(1e-9, 50 * torch.finfo(dtype).eps)
    assert result.image.shape == x.shape
    assert result.relative_residual <= accuracy
    assert error(result, x) <= 10 * accuracy
    assert result.method is ChainMethod.GAUSS_NEWTON
    assert result.determined.share == 1
    assert not result.doubts
    assert [layer.treatment for layer in result.layers] == ["affine", "affine", "not affine"]


def test_invertible_activations_between_layers_are_undone():
    net = trained(
        nn.Conv2d(2, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 12, 3, padding=1), nn.Tanh(),
        nn.Conv2d(12, 12, 1), nn.Softplus(),
    )  # fmt: skip
    x = random((2, 6, 6), seed=1)
    result = deconv_cli.invert_chain(net(x[None])[0], net)
    assert error(result, x) < 1e-8


def test_a_chain_that_ends_at_a_local_minimum_is_doubted_in_one_sentence():
    net = trained(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                  Residual(16))  # fmt: skip
    result = deconv_cli.invert_chain(net(random((1, 8, 8), seed=1)[None])[0], net)
    assert result.solution.status is Status.LOCAL_MINIMUM
    assert "use fewer layers at once" in result.doubts[0].sentence


def test_the_best_estimate_until_the_time_limit_is_given():
    net = trained(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
    y = net(random((2, 1, 8, 8), seed=1))
    result = deconv_cli.invert_chain(y, net, time_limit=1e-3)
    assert result.solution.status is Status.TIME_LIMIT
    assert "the time ran out" in result.doubts[0].sentence
    assert 0 < result.relative_residual < 1
    torch.testing.assert_close(result.residual, y - net(result.image))
    with pytest.raises(UsageError, match="time_limit must be a positive number"):
        deconv_cli.invert_chain(y, net, time_limit=0)


def test_data_that_the_chain_cannot_give_are_doubted():
    net = trained(nn.Conv2d(1, 4, 3), nn.Tanh())
    result = deconv_cli.invert_chain(random((4, 6, 6), seed=1), net)
    assert result.relative_residual > 0.05
    assert "residual" in [doubt.reason.value for doubt in result.doubts]


def test_a_minimum_that_does_not_reach_the_data_is_named():
    """The iteration converged all the same: λ pulls."""
    result = deconv_cli.invert_chain(random((2, 8, 8)), [nn.Conv2d(1, 2, 3, padding=1)], lam=1.0)
    assert result.solution.status is Status.CONVERGED
    assert result.relative_residual > 0.5
    assert re.fullmatch(
        r"stopped after \d+ iterations? at a minimum; \d\d.* % of the data remain unexplained", result.ending
    )


def test_a_module_is_copied_and_acts_in_evaluation_mode():
    net = trained(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).float().train().requires_grad_()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = random((2, 1, 8, 8), seed=1)
    net.eval()
    y = net(x.float()).detach()
    net.train()
    result = deconv_cli.invert_chain(y, list(net))
    assert error(result, x) < 1e-4
    assert net.training
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


SIZES = [
    ([nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], (3, 64, 48), None),
    ([nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], (3, 61, 45), (61, 45)),
    ([nn.Conv2d(2, 4, 3)], (2, 9, 7), None),
    ([nn.PixelUnshuffle(2), nn.Conv2d(8, 4, 3, padding=1)], (2, 8, 6), None),
    ([nn.PixelShuffle(2), nn.Conv2d(2, 4, 3, padding=1)], (8, 8, 6), None),
    ([nn.ReLU(), nn.Upsample(scale_factor=2)], (5, 8, 6), None),
    ([nn.ConvTranspose2d(4, 2, 3, 2)], (4, 8, 6), None),
    ([Residual(6)], (6, 8, 9), None),
    ([nn.Conv1d(2, 3, 5, 3)], (2, 30), (30,)),
    ([nn.Conv3d(2, 3, 3, 2, 1)], (2, 8, 6, 4), None),
    ([nn.Flatten(), nn.Linear(12, 20)], (3, 2, 2), (3, 2, 2)),
]


@pytest.mark.parametrize(("layers", "shape", "given"), SIZES, ids=[str(n) for n in range(len(SIZES))])
def test_the_shape_of_the_input_follows_from_that_of_the_output(layers, shape, given):
    chain = compose(list_parts(layers, DOUBLE))
    y = chain(torch.zeros(2, *shape).double())
    assert input_shape_of(chain, tuple(y.shape), given) == shape
    assert input_shape_of(chain, tuple(y.shape[1:]), given) == shape


def test_what_cannot_be_undone_is_refused_in_a_sentence():
    net = trained(nn.Conv2d(1, 4, 3))
    y = random((4, 6, 6), seed=1)
    with pytest.raises(ShapeError, match="gives an output of"):
        deconv_cli.invert_chain(y, net, input_size=(9, 9))
    with pytest.raises(ShapeError, match="2 axes of space"):
        deconv_cli.invert_chain(y, net, input_size=(9, 9, 9, 9))
    with pytest.raises(ShapeError):
        deconv_cli.invert_chain(random((5, 6, 6), seed=1), net)
    with pytest.raises(UsageError, match="give input_size"):
        deconv_cli.invert_chain(random((4, 1, 1), seed=1), [*net, nn.AdaptiveAvgPool2d(1)])
    with pytest.raises(UsageError, match="boundary has no effect"):
        deconv_cli.invert_chain(y, net, boundary="zero")
    with pytest.raises(UsageError, match="lambda must be zero"):
        deconv_cli.invert_chain(y, net, lam="auto")
    with pytest.raises(UsageError, match="torch module"):
        deconv_cli.invert_chain(y, [torch.relu])
    with pytest.raises(UsageError, match="torch module"):
        deconv_cli.invert_chain(y, [])
    with pytest.raises(MalformedInputError):
        deconv_cli.invert_chain(y * math.nan, net)


def test_an_estimate_much_larger_than_the_data_need_is_doubted():
    net = nn.Conv1d(3, 2, 1, bias=False).double().requires_grad_(False)
    net.weight[:, :, 0] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e-3, 0.0]])
    y = torch.tensor([[0.1], [1.0]]).double()
    found = deconv_cli.invert_chain(y, net)
    assert found.image.flatten().tolist() == pytest.approx([0.1, 1000.0, 0.0])
    assert any("as large as the data need" in doubt.sentence for doubt in found.doubts)
    quiet = deconv_cli.invert_chain(y, net, lam=1e-2)
    assert quiet.amplification < 30
    assert not quiet.doubts
