"""What stands on the way back: hooks, errors of backward, checkpoints, derivatives inside the loss."""

from __future__ import annotations

import inspect

import pytest
import torch
from gradient_cases import causes, checked, load_fixture, verdicts
from torch import nn
from torch.utils.checkpoint import checkpoint

from deconv_cli.errors import UsageError

catalogue, wrong = load_fixture("catalogue"), load_fixture("wrong")


def line_of(function, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    (found,) = [first + n for n, line in enumerate(lines) if text in line]
    return found


class Hooked(nn.Module):
    def __init__(self, hook):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.hook = hook

    def forward(self, x):
        h = torch.tanh(self.body(x))
        h.register_hook(self.hook)
        return self.head(h)


def doubling(grad):
    return 2 * grad


def doubling_in_place(grad):
    grad.mul_(2)


def looking(grad):
    grad.norm()


class TestHooks:
    @pytest.mark.parametrize("hook", [doubling, doubling_in_place])
    def test_a_hook_that_changes_the_gradient_is_blamed_on_its_line(self, hook):
        found = checked(Hooked(hook), 5, 4)
        assert verdicts(found) == {"body.weight": "WRONG", "body.bias": "WRONG", "head.weight": "OK", "head.bias": "OK"}
        (cause,) = causes(found, "body.weight")
        assert (cause.location.file, cause.location.line) == (__file__, line_of(Hooked.forward, "register_hook"))
        assert "hook" in cause.why

    def test_a_hook_on_a_weight_that_only_looks_hides_no_detachment(self):
        class Net(nn.Linear):
            def forward(self, x):
                return super().forward(x) + torch.sin(3 * x @ self.weight.data.T)

        model = Net(4, 2)
        model.weight.register_hook(looking)
        assert verdicts(checked(model, 5, 4)) == {"weight": "DETACHED", "bias": "OK"}

    def test_a_hook_that_only_looks_is_not_blamed(self):
        class Net(Hooked):
            def forward(self, x):
                h = torch.tanh(self.body(x))
                h.register_hook(looking)
                h.register_hook(doubling)
                return self.head(h)

        (cause,) = causes(checked(Net(None), 5, 4), "body.weight")
        assert cause.location.line == line_of(Net.forward, "(doubling)")

    @pytest.mark.parametrize(("factor", "verdict"), [(2.0, "WRONG"), (torch.arange(6) < 3, "SUBSTITUTED")])
    def test_a_hook_of_a_module_that_changes_gradients_is_named(self, factor, verdict):
        def changing(module, given, arriving):
            return tuple(factor * grad for grad in given)

        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        model[2].register_full_backward_hook(changing)
        found = checked(model, 5, 4)
        assert verdicts(found) == {"0.weight": verdict, "0.bias": verdict, "2.weight": "OK", "2.bias": "OK"}
        (cause,) = causes(found, "0.weight")
        assert cause.location.line == changing.__code__.co_firstlineno


class Block(nn.Module):
    """Two layers, a side path, and a hook of the module that only looks."""

    def __init__(self, side):
        super().__init__()
        self.main, self.aside, self.side = nn.Linear(6, 6), nn.Linear(6, 6), side
        self.register_full_backward_hook(lambda module, given, arriving: None)

    def forward(self, x):
        return self.main(x) + self.side(self, x)


BESIDE = {
    "a hook": lambda block, h: torch.sin(block.aside(h.detach())),
    "a hook, by a norm": lambda block, h: block.aside(h) / block.aside(h).norm(dim=1, keepdim=True).detach(),
    "a backward": lambda block, h: catalogue.Right.apply(h, block.aside.weight) + block.aside(h.detach()),
    "a checkpoint": lambda block, h: checkpoint(
        lambda h: block.aside(h) * torch.sigmoid(h.detach()), h, use_reentrant=True
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_detachment_beside_what_runs_without_gradients_spoils_no_verdict(name):
    found = checked(catalogue.Middle(Block(BESIDE[name])), 5, 4)
    assert set(verdicts(found).values()) == {"OK"}
    assert not any(finding.is_fault for finding in found.general)


def test_a_hook_of_a_module_hides_no_detachment():
    found = verdicts(checked(catalogue.Middle(Block(lambda block, h: torch.sin(block.aside(h).data))), 5, 4))
    cut = {name for name, verdict in found.items() if verdict == "DETACHED"}
    assert cut == {"body.weight", "body.bias", "middle.aside.weight", "middle.aside.bias"}
    assert {verdict for name, verdict in found.items() if name not in cut} == {"OK"}


class TooFew(wrong.Doubled):
    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[1]


class Impossible(TooFew):
    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ torch.zeros(99, 3), (grad * x * w).sum(0)


@pytest.mark.parametrize(("function", "text"), [(TooFew, "def backward"), (Impossible, "return grad @")])
def test_an_error_of_backward_is_blamed_on_the_line_in_it(function, text):
    model = wrong.DoubledNet(n=5)
    model.function = function
    (cause,) = causes(checked(model, 4, 5), "w")
    assert (cause.location.file, cause.location.line) == (__file__, line_of(function, text))


class Halved(torch.autograd.Function):
    """A convolution whose backward unfolds its input."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return nn.functional.conv2d(x, w, padding=1)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        columns = nn.functional.unfold(x, 3, padding=1)
        rows = grad.flatten(2)
        for_w = (rows @ columns.transpose(1, 2)).sum(0)
        return nn.functional.conv_transpose2d(grad, w, padding=1), 0.5 * for_w.view_as(w)


class MeanOfSamples(Halved):
    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        columns = nn.functional.unfold(x, 3, padding=1)
        for_w = torch.einsum("nol,nkl->ok", grad.flatten(2), columns) / len(x)
        return nn.functional.conv_transpose2d(grad, w, padding=1), for_w.view_as(w)


class MeanOfSum(Halved):
    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        columns = nn.functional.unfold(x, 3, padding=1)
        for_w = torch.einsum("nol,nkl->ok", grad.flatten(2), columns)
        for_w = for_w / len(x)
        return nn.functional.conv_transpose2d(grad, w, padding=1), for_w.view_as(w)


class HalfFlipped(Halved):
    """Either of two lines could be the wrong one."""

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        flipped = w.flip(2).transpose(0, 1)
        for_x = nn.functional.conv2d(grad, flipped, padding=1)
        return for_x, torch.nn.grad.conv2d_weight(x, w.shape, grad, padding=1)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (Halved, "0.5 *"),
        (MeanOfSamples, "/ len(x)"),
        (MeanOfSum, "/ len(x)"),
        (HalfFlipped, "def backward"),
    ],
)
def test_a_line_that_moves_values_is_not_blamed_for_the_line_that_uses_them(function, text):
    class Net(nn.Conv2d):
        def forward(self, x):
            return function.apply(torch.tanh(super().forward(x)), self.weight).tanh()

    (cause,) = causes(checked(Net(2, 2, 3, padding=1, bias=False), 4, 2, 7, 7), "weight")
    assert cause.location.line == line_of(function.backward, text)


class CubeTwice(torch.autograd.Function):
    """The factor 3 of the derivative is a 2, after a line that is right and does not read the incoming gradient."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return w * x**3

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        square = x * x
        for_x = grad * w * 2 * square
        return for_x, (grad * x**3).sum(0)


class CubeOfSlope(CubeTwice):
    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        square = x * x
        slope = 2 * square
        for_x = grad * w * slope
        return for_x, (grad * x**3).sum(0)


class CubeWithoutWeight(CubeTwice):
    @staticmethod
    def backward(ctx, grad):
        x, _ = ctx.saved_tensors
        square = x * x
        slope = 3 * square
        for_x = grad * slope
        return for_x, (grad * x**3).sum(0)


class LogCosh(torch.autograd.Function):
    """A line before the incoming gradient is wrong, and a right one uses it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return w * torch.log(torch.cosh(x))

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        rising = torch.exp(x)
        falling = 2 / rising
        slope = (rising - falling) / (rising + falling)
        for_x = grad * w * slope
        return for_x, (grad * torch.log(torch.cosh(x))).sum(0)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (CubeTwice, "def backward"),
        (LogCosh, "def backward"),
        (CubeOfSlope, "slope = 2"),
        (CubeWithoutWeight, "for_x = grad * slope"),
    ],
)
def test_a_line_without_the_incoming_gradient_is_blamed_for_a_wrong_slope_alone(function, text):
    class Net(nn.Linear):
        def forward(self, x):
            return function.apply(super().forward(x), self.bias)

    (cause,) = causes(checked(Net(4, 4), 8, 4), "weight")
    assert cause.location.line == line_of(function.backward, text)


class DropsAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        ctx.kept = (torch.rand_like(x) > 0.5).to(x)
        return x * w * ctx.kept

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        grad = grad * (torch.rand_like(x) > 0.5).to(x)
        return grad * w, (grad * x).sum(0)


class ClampsItsMask(DropsAgain):
    """What it writes to is no input, and is the same after the second call as after the first."""

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        grad = grad * ctx.kept.clone()
        ctx.kept.zero_()
        return grad * w, (grad * x).sum(0)


@pytest.mark.parametrize(("function", "why"), [(DropsAgain, "draws random numbers"), (ClampsItsMask, "overwrites")])
def test_a_backward_that_draws_or_overwrites_is_told_apart(function, why):
    class Net(nn.Linear):
        def forward(self, x):
            return function.apply(super().forward(x), self.bias)

    assert any(f"backward {why}" in cause.why for cause in causes(checked(Net(4, 4), 8, 4), "weight"))


class Forces(nn.Module):
    """Energy and its derivative by the positions."""

    def __init__(self, unit=torch.tanh, *, create_graph=True):
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 8), nn.Linear(8, 1)
        self.unit = unit
        self.create_graph = create_graph

    def forward(self, positions):
        positions = positions.clone().requires_grad_()
        energy = self.head(self.unit(self.hidden(positions))).sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=self.create_graph)
        return energy, -forces


def on_forces(output):
    return output[1].square().sum()


def on_forces_with_nothing_of_the_energy(output):
    return output[1].square().sum() + 0 * output[0]


class TestDerivativesInTheLoss:
    @pytest.mark.parametrize("loss", [on_forces, on_forces_with_nothing_of_the_energy])
    def test_a_bias_that_only_shifts_the_energy_is_no_fault(self, loss):
        found = checked(Forces(), 5, 3, loss=loss)
        assert verdicts(found) == {
            "hidden.weight": "OK",
            "hidden.bias": "OK",
            "head.weight": "OK",
            "head.bias": "ZERO BY CONSTRUCTION",
        }
        (cause,) = causes(found, "head.bias")
        assert cause.location.line == line_of(Forces, "torch.autograd.grad(")
        assert found.faults() == []
        assert found.not_checked == ()

    def test_the_last_bias_of_a_critic_with_a_gradient_penalty_is_no_fault(self):
        class Critic(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(), nn.Linear(8, 1))

            def forward(self, x):
                x = x.clone().requires_grad_()
                (slopes,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
                penalty = (slopes.norm(dim=1) - 1).square().mean()
                return self.net(x[:3]).mean() - self.net(x[3:]).mean() + penalty

        found = checked(Critic(), 6, 3)
        assert verdicts(found)["net.2.bias"] == "ZERO BY CONSTRUCTION"
        assert found.faults() == []

    def test_forces_that_cannot_be_differentiated_again(self):
        found = checked(Forces(create_graph=False), 5, 3, loss=lambda output: output[1].square().sum())
        assert set(verdicts(found).values()) == {"DETACHED"}
        assert causes(found, "hidden.weight")[0].suggestion == "pass create_graph=True"

    def test_a_backward_that_loses_a_parameter_detaches_it(self):
        class Shifted(Forces):
            def __init__(self):
                super().__init__()
                self.shift = nn.Parameter(torch.ones(1))

            def forward(self, positions):
                positions = positions.clone().requires_grad_()
                energy = catalogue.Cubed.apply(self.hidden(positions).sum() + self.shift).sum()
                (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
                return energy, forces

        found = checked(Shifted(), 5, 3, loss=on_forces)
        assert verdicts(found)["shift"] == "DETACHED"
        assert "a backward of plain values" in causes(found, "shift")[0].why


class TestNotFinite:
    def test_nan_among_the_inputs(self):
        inputs = torch.randn(5, 4)
        inputs[1, 2] = torch.nan
        found = checked(nn.Linear(4, 2), inputs=inputs, loss=lambda output: output.clamp(0, 1).mean())
        assert set(verdicts(found).values()) == {"NON-FINITE"}
        assert "an input of shape (5, 4) already contained it" in causes(found, "bias")[0].why

    def test_nan_among_the_weights(self):
        model = nn.BatchNorm1d(4).eval()
        model.weight.data[1] = model.running_var[0] = torch.nan
        why = causes(checked(model, 5, 4), "bias")[0].why
        assert "the parameter 'weight' and the buffer 'running_var' already contained it" in why

    @pytest.mark.parametrize("is_clean", [False, True])
    def test_an_operation_is_judged_by_its_inputs_when_it_ran(self, is_clean):
        """Later writes make NaN of the numbers that log took, or numbers of the NaN that mul took."""

        class Overwriting(nn.Linear):
            def forward(self, x):
                a = torch.zeros_like(x).div_(0) if is_clean else x - 100
                b = a * 2 if is_clean else a.log()
                a.fill_(1 if is_clean else torch.nan)
                return super().forward(b)

        found = causes(checked(Overwriting(4, 4), 5, 4), "bias")
        assert [cause.operation for cause in found] == ["div_(...)" if is_clean else "log(...)"]

    def test_nan_behind_a_sparse_matrix(self):
        class Graph(nn.Linear):
            def forward(self, x):
                return torch.sparse.mm(torch.eye(5, dtype=x.dtype).to_sparse(), super().forward(x) - 100).log()

        assert causes(checked(Graph(4, 4), 5, 4), "bias")[0].operation == "log(...)"


class Complex(nn.Module):
    def __init__(self, *, real_output):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
        self.b = nn.Parameter(torch.randn(3))
        self.real_output = real_output

    def forward(self, x):
        y = x.to(self.w.dtype) @ self.w
        return (y.abs() if self.real_output else y) + self.b


@pytest.mark.parametrize("real_output", [True, False])
def test_complex_parameters(real_output):
    """Warnings are errors here, so that none may be raised on the way."""
    model = Complex(real_output=real_output)
    found = checked(model, 5, 4)
    assert verdicts(found) == {"w": "OK", "b": "OK"}
    assert found.dtype == "float64"
    finding = found.parameters[0]
    assert finding.weight_norm == pytest.approx(float(model.w.detach().abs().square().sum().sqrt()), rel=1e-6)
    loss = checked.__globals__["projection"](model(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))))
    (gradient,) = torch.autograd.grad(loss, [model.w])
    assert finding.gradient_norm == pytest.approx(float(gradient.abs().square().sum().sqrt()), rel=1e-5)


def test_a_complex_loss_is_refused():
    with pytest.raises(UsageError, match="complex"):
        checked(Complex(real_output=False), 5, 4, loss=lambda output: output.sum())


def test_a_parameter_that_a_function_reads_past_its_arguments_is_detached():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.layer = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

        def forward(self, x):
            w = self.w

            class Times(torch.autograd.Function):
                @staticmethod
                def forward(ctx, h):
                    return h * w

                @staticmethod
                def backward(ctx, grad):
                    return grad * w

            return Times.apply(self.layer(x))

    found = checked(Net(), 5, 4)
    assert verdicts(found) == {"w": "DETACHED", "layer.weight": "OK", "layer.bias": "OK"}
    (cause,) = causes(found, "w")
    assert "not among its arguments" in cause.why
    assert cause.suggestion.startswith("pass the parameter to apply")


def test_a_model_spread_over_devices_is_refused():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2, device="meta"))
    with pytest.raises(UsageError, match="on one device, but it is spread over cpu, meta"):
        checked(model, 5, 4)
