"""What is suggested in the place of a line that detaches: it runs, and carries gradients."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import causes, check_case, load_fixture

from deconv_cli.gradients.rules.detached import LEAVE_OUT, line_with_gradient

catalogue = load_fixture("catalogue")


@pytest.mark.parametrize(
    "source",
    [
        *("y = x.detach()", "y = x.data", "y = 2 * x.data + 1", "y = x[0].item()", "y = float(x[0])"),
        *("y = float(x[0].item())", "y = x.tolist()", "y = x + torch.sin(3 * x).detach()", "y = x.detach()[0].item()"),
        "y = torch.tensor(x.sum().item(), requires_grad=True)",
        "y = torch.as_tensor([v.item() for v in x])",
        "y = Variable(x * 2, requires_grad=True)",
    ],
)
def test_what_is_written_runs_and_trains(source):
    x = torch.randn(3, requires_grad=True)
    space = {"x": x, "torch": torch}
    exec(line_with_gradient(source), space)
    assert torch.autograd.grad(space["y"].sum(), x)[0].any()


OTHERS = {
    **dict.fromkeys(("y = x.detach().numpy()", "y = x.cpu().numpy()", "y = np.mean(x.detach().numpy())")),
    **dict.fromkeys(("y = x.detach() + z.detach()", "for v in x.tolist():", "h.detach(),")),
    **dict.fromkeys(("h = h.detach()", "h = h.data", "self.h = self.h.detach()", "h.detach_()"), LEAVE_OUT),
}


@pytest.mark.parametrize("source", OTHERS)
def test_a_line_that_only_detaches_is_left_out_and_nothing_is_written_that_may_fail(source):
    assert line_with_gradient(source) == OTHERS[source]


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
        (as_array, "keep the tensor, and compute with torch functions"),
    ],
)
def test_suggestions(way, suggestion):
    (cause,) = causes(check_case(catalogue.Case(catalogue.Middle(way), catalogue.x(5, 4))), "body.weight")
    assert cause.suggestion == suggestion
