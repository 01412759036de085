"""What is suggested in the place of a line that detaches: it runs, and carries gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_cases import causes, checked
from torch import nn

from deconv_cli.gradients.rewritten_lines import LEAVE_OUT, line_without_detachment, write_piecewise_loss


@pytest.mark.parametrize(
    "source",
    [
        "y = x.detach()",
        "y = x.data",
        "y = 2 * x.data + 1",
        "y = x[0].item()",
        "y = float(x[0])",
        "y = float(x[0].item())",
        "y = x.tolist()",
        "y = x + torch.sin(3 * x).detach()",
        "y = np.mean(x.detach().numpy())",
        "y = np.mean(x.detach().cpu().numpy()) + 1",
        "y = np.abs(x.data.numpy())",
        "y = torch.from_numpy(np.tanh(x.detach().numpy()))",
        "y = torch.tensor(x.sum().item(), requires_grad=True)",
        "y = torch.as_tensor([v.item() for v in x])",
    ],
)
def test_what_is_written_runs_and_trains(source):
    x = torch.randn(3, requires_grad=True)
    space = {"x": x, "torch": torch, "np": np}
    exec(line_without_detachment(source), space)
    y = space["y"]
    assert torch.autograd.grad(y.sum(), x)[0].any()


@pytest.mark.parametrize(
    "source",
    [
        "y = x.detach().numpy()",
        "y = x.cpu().numpy()",
        "y = np.median(x.detach().numpy())",
        "y = x.detach() + z.detach()",
        "y = x.detach()[0].item()",
        "for v in x.tolist():",
        "h.detach(),",
    ],
)
def test_nothing_is_written_that_may_fail(source):
    assert line_without_detachment(source) is None


@pytest.mark.parametrize("source", ["h = h.detach()", "h = h.data", "self.h = self.h.detach()", "h.detach_()"])
def test_a_line_that_only_detaches_is_left_out(source):
    assert line_without_detachment(source) == LEAVE_OUT == "leave this line out"


class Net(nn.Linear):
    def __init__(self, way):
        super().__init__(4, 3)
        self.way = way

    def forward(self, x):
        h = super().forward(x)
        return self.way(h)


def detached(h):
    h = h.detach()
    return h  # noqa: RET504  the line is what is tested


def detached_in_place(h):
    h = 1 * h
    h.detach_()
    return h


def among_others(h):
    return torch.cat(
        [
            h.data,
            h,
        ]
    )


def as_array(h):
    values = h.detach().numpy()
    return torch.from_numpy(values)


@pytest.mark.parametrize(
    ("way", "suggestion"),
    [
        (detached, LEAVE_OUT),
        (detached_in_place, LEAVE_OUT),
        (among_others, "h,"),
        (as_array, "keep the tensor as it is, and compute on with torch functions"),
    ],
)
def test_suggestions(way, suggestion):
    (cause,) = causes(checked(Net(way), 3, 4), "weight")
    assert cause.suggestion == suggestion


class TestCounts:
    """A single comparison may count what is right or what is wrong: two penalties, of which one fits."""

    @pytest.mark.parametrize(("sign", "inside", "outside"), [("<", 0.1, 0.5), (">", 0.5, 0.1)])
    def test_both_are_written_and_run(self, sign, inside, outside):
        suggested = write_piecewise_loss(f"return (error {sign} 0.2).float().mean()")
        first, second = suggested.split("; ")
        assert first.endswith(" if it counts what is wrong")
        assert second.endswith(" if it counts what is right")
        for written, slope_at in ((first, inside), (second, outside)):
            code = written.partition(" if it counts")[0]
            for place in (inside, outside):
                error = torch.full((3,), place, requires_grad=True)
                value = eval(code, {"torch": torch, "error": error})
                slope = torch.autograd.grad(value, error)[0]
                assert bool(slope.any()) == (place == slope_at)
                assert bool(value > 0) == (place == slope_at)

    def test_the_line_of_an_accuracy(self):
        def loss(output):
            error = output.abs()
            return (error < 0.2).float().mean()

        (cause,) = causes(checked(nn.Linear(4, 2), 5, 4, loss=loss), "weight")
        assert cause.suggestion == (
            "torch.where((error < 0.2), 0.2 - error, 0.0).mean() if it counts what is wrong; "
            "torch.where((error < 0.2), 0.0, error - 0.2).mean() if it counts what is right; "
            "the value of the loss changes"
        )


class TestTrials:
    """A line is tried before it is suggested: the loss stays, and the gradient comes."""

    def test_a_line_that_does_not_help_is_not(self):
        """What cuts the gradient off is the cast on the same line."""

        def through_a_number(h):
            h = torch.zeros(3, dtype=torch.int64) + h.detach()[:, 0].long()
            return h.to(torch.float32)

        def indexed(h):
            table = torch.arange(100.0)
            return table[(h * 3).abs().detach().long()]

        for way in (through_a_number, indexed):
            (cause, *_) = causes(checked(Net(way), 3, 4), "weight")
            assert "was tried, and fails" in cause.suggestion

    def test_the_function_is_left_as_it_was(self):
        before = detached.__code__
        checked(Net(detached), 3, 4)
        assert detached.__code__ is before
