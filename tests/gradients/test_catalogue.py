"""Mistakes of real training code are found on their lines, and sound models that resemble them are not accused."""

from __future__ import annotations

import ast
import contextlib
import linecache
import sys
from types import ModuleType

import pytest
import torch
from gradient_cases import FIXTURES, causes, check_case, load_fixture, verdicts

from deconv_cli.gradients.rules.detached import LEAVE_OUT, line_with_gradient

catalogue = load_fixture("catalogue")
LINES = (FIXTURES / "catalogue.py").read_text(encoding="utf-8").splitlines()
QUICK = {
    "no_grad",
    "branch_not_taken",
    "both_factors_zero",
    "loss_in_numpy",
    "softmax_twice",
    "drawn_with_a_gradient",
} | {"learned_window"}


def marked(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive) for name in names]


def faults(report):
    return [*report.faults(), *(found for found in report.general if found.is_fault or found.verdict == "NOISY")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", marked(catalogue.BROKEN))
def test_a_mistake_is_found_on_its_line(name):
    found = faults(check_case(catalogue.BROKEN[name]()))
    assert found
    marks = {n for n, line in enumerate(LINES, start=1) if line.endswith(f"# {name}")}
    lines = {cause.location.line for fault in found for cause in fault.causes}
    # What is drawn by NumPy has no line that torch could see.
    assert not marks or marks & lines or name == "noise_without_a_seed", found


@pytest.mark.parametrize("name", marked(catalogue.SOUND))
def test_a_sound_model_is_not_accused(name):
    found = check_case(catalogue.SOUND[name]())
    assert faults(found) == []
    assert "NOT CHECKED" not in verdicts(found).values()


TOLD = {
    "WithoutIncoming": ("WRONG", "is not linear in the incoming gradient", ""),
    "MeanForSum": ("WRONG", "the mean over 5 samples", ""),
    "Clipped": ("WRONG", "is not linear in the incoming gradient", ""),
    "WritesIntoSaved": ("WRONG", "overwrites its input tensors", ""),
    "WritesIntoIncoming": ("WRONG", "overwrites the incoming gradient", ""),
    "LostBetweenSteps": ("WRONG", "elements of the gradient for 'w' are wrong", ""),
    "NothingForWeight": ("DETACHED", "returns None", ""),
    "sampled": ("DETACHED", "", "draw with .rsample()"),
    "branch_not_taken": ("NON-FINITE", "torch.where may not even select", "exp(torch.where(mask, x, 0.5))"),
    "both_factors_zero": ("ZERO", "other factor", "initialize one of the two with random values"),
    "softmax_of_one": ("ZERO", "only one class", "use sigmoid"),
    "plain_list": ("UNREGISTERED", "self.layers is a plain Python container", ""),
    "plain_tensor": ("UNREGISTERED", "self.scale is a tensor that requires a gradient but no nn.Parameter", ""),
    "layer_made_in_forward": ("UNREGISTERED", "forward creates in each pass", ""),
    "softmax_twice": ("LOSS INPUT", "computes probabilities itself", ""),
    "scores_for_logarithms": ("LOSS INPUT", "needs logarithms", ""),
    "column_against_row": ("LOSS INPUT", "shapes (6, 1) and (6,) broadcast", ""),
    "one_class": ("LOSS INPUT", "only one class", ""),
    "classes_by_view": ("LOSS INPUT", "scores of several places become the classes of one", ""),
    "zeros_and_ones_for_signs": ("LOSS INPUT", "needs targets of -1 and 1", ""),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TOLD)
def test_mistakes_are_told_apart_on_their_lines(name):
    verdict, why, instead = TOLD[name]
    found = [fault for fault in faults(check_case(catalogue.BROKEN[name]())) if fault.verdict == verdict]
    (fault,) = found
    (cause,) = fault.causes
    assert cause.location.source.endswith(f"# {name}")
    assert why in cause.why
    assert instead in cause.suggestion


def test_the_safe_branch_that_is_suggested_trains():
    """What is suggested for a branch that is not taken gives the same values, and gradients that are right."""
    middle = catalogue.BROKEN["branch_not_taken"]().model.middle

    def cured(h):
        taken = h > -2
        return torch.where(taken, h, torch.exp(torch.where(taken, 1.0, 1000 * h.abs())))

    h = torch.tanh(catalogue.x(5, 6))
    assert torch.equal(middle(h), cured(h))
    found = check_case(catalogue.Case(catalogue.Middle(cured), catalogue.x(5, 4)))
    assert set(verdicts(found).values()) == {"OK"}


REWRITTEN = (
    *("detach", "data", "made_of_a_list", "in_place_on_what_is_needed", "made_of_a_tensor", "written_past_autograd"),
    *("value_of_a_parameter", "loss_wrapped", "detached_by_a_forward_hook"),
)
"""Mistakes for which a line of code is suggested."""

MAX_ROUNDS = 3


def made_of(text, name):
    """Run the catalogue with other lines, and make a case of it."""
    module, file = ModuleType(f"cured_{name}"), f"{name} of the catalogue.py"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    sys.modules[module.__name__] = module
    exec(compile(text, file, "exec"), module.__dict__)
    return module.BROKEN[name](), file


def with_suggested_line(text, found, file):
    """Write the first suggestion that is a line of code in the place of the line that is blamed."""
    lines = text.splitlines()
    for cause in (cause for fault in found for cause in fault.causes if cause.location.file == file):
        with contextlib.suppress(SyntaxError):
            ast.parse(cause.suggestion)
            line = lines[cause.location.line - 1]
            lines[cause.location.line - 1] = line[: len(line) - len(line.lstrip())] + cause.suggestion
            return "\n".join(lines)
    raise AssertionError(f"nothing was suggested: {found}")


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REWRITTEN)
def test_a_suggested_line_helps(name):
    text = "\n".join(LINES)
    for _ in range(MAX_ROUNDS):
        case, file = made_of(text, name)
        found = faults(check_case(case))
        if not found:
            return
        text = with_suggested_line(text, found, file)
    assert faults(check_case(made_of(text, name)[0])) == []


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
