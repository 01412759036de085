"""No false alarm on sound networks, however they are built, and nothing of them changed by the check."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, check_case, checked, load_fixture, verdicts
from torch import nn

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.gradients.inputs import Batch

catalogue, healthy, unusual, wrong = map(load_fixture, ("catalogue", "healthy", "unusual", "wrong"))


def words(n, *shape):
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(0))


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


HEALTHY = {
    "lstm": (healthy.Lstm, lambda: torch.randn(4, 7, 5)),
    "gru": (healthy.Gru, lambda: torch.randint(0, 11, (4, 6))),
    "transformer": (healthy.Transformer, lambda: torch.randint(0, 13, (4, 6))),
    "batch norm": (healthy.Normalized, lambda: torch.randn(4, 3, 8, 8)),
}
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 20))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("has_target", [True, False])
def test_healthy_networks_give_no_alarm_whatever_their_weights_and_their_data(name, seed, has_target):
    build, draw = HEALTHY[name]
    torch.manual_seed(seed)
    model, inputs = build(), draw()
    options = {"loss": nn.CrossEntropyLoss, "target": torch.randint(0, 3, (4,))} if has_target else {}
    found = checked(model, inputs=inputs, seed=seed, **options)
    assert set(verdicts(found).values()) <= {"OK", "NONDIFFERENTIABLE"}, found.parameters
    assert found.general == ()
    assert not [sentence for sentence in found.not_checked if "leak" not in sentence]


def tied():
    """Give one matrix to embedding and output, with a row for padding."""
    model = nn.Sequential(nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 20, bias=False))
    model[3].weight = model[0].weight
    return model


CASES = {
    "tied": (tied, words(20, 4, 5)),
    "sparse": (lambda: nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)), words(10, 4, 3)),
    "cells": (unusual.Cells, normal(3, 6, 3)),
    "checkpoint": (unusual.Checkpointed, normal(4, 4)),
    "reentrant checkpoint": (lambda: unusual.Checkpointed(use_reentrant=True), normal(4, 4)),
    "writing": (unusual.Writing, normal(4, 4)),
    "time first": (unusual.TimeFirst, normal(6, 3, 3)),
    "half precision": (unusual.HalfPrecision, normal(4, 4)),
    "double": (lambda: nn.Linear(4, 2).double(), normal(4, 4, dtype=torch.float64)),
    "bfloat16": (lambda: nn.Linear(4, 2).bfloat16(), normal(4, 4).bfloat16()),
    "a dataclass as output": (unusual.OfDataclass, normal(4, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sound_network_gives_no_alarm_and_is_left_as_it_was(name):
    build, inputs = CASES[name]
    model = build()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    data, seen = [p.data_ptr() for p in model.parameters()], inputs.clone()
    found = checked(model, inputs=inputs)
    assert set(verdicts(found).values()) == {"OK"}, [(f.name, f.verdict, f.detail, f.causes) for f in found.parameters]
    assert found.general == ()
    assert [p.data_ptr() for p in model.parameters()] == data
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.equal(inputs, seen)
    assert torch.get_default_dtype() == torch.float32


def test_a_buffer_that_forward_writes_to_and_divides_by():
    """A second forward pass overwrites what backward of the first one needs."""

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("size", torch.ones(()))

        def forward(self, x):
            h = super().forward(x)
            if self.training:
                with torch.no_grad():
                    self.size.mul_(0.9).add_(0.1 * h.abs().mean())
            return torch.tanh(h / self.size)

    assert set(verdicts(checked(Scaled(), 5, 4)).values()) == {"OK"}


def test_what_is_written_past_autograd_mixes_no_samples_by_itself():
    class Centered(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("center", torch.zeros(3))

        def forward(self, x):
            h = super().forward(x)
            center = h.mean(0)
            self.center.data.copy_(center)
            return torch.tanh(h - self.center)

    (cause,) = next(found for found in checked(Centered(), 5, 4).general if found.verdict == "BATCH-LEAK").causes
    assert (cause.operation, cause.location.source) == ("mean(...)", "center = h.mean(0)")


def test_a_buffer_that_forward_writes_to_by_another_name():
    """A copy of the buffer would stay at zero, and forward divides by it."""

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("size", torch.zeros(()))
            self.sizes = [self.size]

        def forward(self, x):
            h = super().forward(x)
            with torch.no_grad():
                self.sizes[0].copy_(h.square().mean())
            return torch.tanh(h / self.size.sqrt())

    assert set(verdicts(checked(Scaled(), 5, 4)).values()) == {"OK"}


def test_a_narrow_type_inside_is_lifted_to_float64():
    found = checked(unusual.NarrowConstants(), 5, 4)
    assert (set(verdicts(found).values()), found.dtype, found.notes) == ({"OK"}, "float64", ())


def test_the_patches_of_torch_are_taken_off():
    before = nn.Parameter.__new__
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        checked(nn.Linear(2, 2), 3, 2, loss=lambda output: 1 / 0)
    assert nn.Parameter.__new__ is before
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


def test_time_is_told_from_the_batch():
    found = checked(unusual.TimeFirst(), 6, 3, 3)
    assert any("axis 0 may be time" in sentence for sentence in found.not_checked)


@pytest.mark.parametrize("has_graph", [False, True])
def test_an_index_that_mixes_samples_leaks_unless_it_belongs_to_a_graph(has_graph):
    class Net(nn.Linear):
        def forward(self, x):
            order = torch.arange(6 if has_graph else len(x)).roll(1)
            y = super().forward(x)
            return y + y[order]

    found = checked(Net(4, 3), 6, 4)
    assert [finding.verdict for finding in found.general] == ([] if has_graph else ["BATCH-LEAK"])
    assert has_graph == any("the nodes of a graph" in sentence for sentence in found.not_checked)


def test_state_that_outlives_a_run():
    found = checked(unusual.Stateful(), 4, 4)
    assert set(verdicts(found).values()) == {"NOISY"}
    assert "keeps state from each run" in found.general[0].causes[0].why


def test_sums_in_a_changing_order_are_told_from_random_numbers():
    """A last digit that changes from run to run, as threads make it."""
    layer = nn.Linear(4, 2)
    runs = []

    def loss(output):
        runs.append(1)
        return output.square().sum() * (1 + 1e-7 * (len(runs) % 2))

    found = checked(layer, 3, 4, loss=loss)
    assert set(verdicts(found).values()) == {"NOISY"}
    assert "the order of sums changes" in found.general[0].causes[0].why


def test_an_apply_that_was_bound_long_ago_is_seen():
    bound = wrong.Doubled.apply

    class Net(wrong.DoubledNet):
        def forward(self, x):
            return torch.tanh(bound(x, self.w)).mean()

    found = checked(Net(), 4, 1000)
    assert found.parameters[0].causes[0].location.line == blamed_line("wrong", "doubled")


def test_a_surrogate_gradient_is_called_one():
    found = check_case(catalogue.SOUND["spikes"]())
    of_body = [finding for finding in found.parameters if finding.name.startswith("body")]
    assert {str(finding.verdict) for finding in of_body} == {"SUBSTITUTED"}
    assert not any(finding.is_fault for finding in found.parameters)
    assert "replaces the gradient" in of_body[0].causes[0].why
    assert "right, except for 2 of 4 that the code substitutes" in str(found)


class QuantizedLinear(torch.autograd.Function):
    """Rounds its input and passes gradients straight through, and is wrong for the weight and the bias."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return torch.round(x * 16) / 16 @ w.t() + b

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, 0.5 * grad.t() @ x, grad.sum(0) / len(x)


def test_a_gradient_passed_straight_through_for_one_input_does_not_excuse_the_others():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.second, self.third = nn.Parameter(torch.full((2, 4), 0.3)), nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return QuantizedLinear.apply(self.body(x), self.second, self.third)

    found = verdicts(checked(Net(), 6, 4))
    assert (found["second"], found["third"], found["body.weight"]) == ("WRONG", "WRONG", "SUBSTITUTED")


class Through(nn.Module):
    """A layer, and a hand-written Function after it."""

    def __init__(self, function):
        super().__init__()
        self.body, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function.apply(self.body(x))


@pytest.mark.parametrize(("factor", "verdict"), [(2.0, "OK"), (2.02, "WRONG")])
@pytest.mark.parametrize("how", ["constant", "saved", "buffer", "forward"])
def test_a_function_in_half_precision_is_judged_by_its_formula(factor, verdict, how):
    half = torch.float16 if how == "constant" else torch.bfloat16
    ones = torch.eye(4, dtype=half)

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(torch.empty(x.shape, dtype=half).copy_(x) if how == "saved" else x)
            return x.to(half).square().to(x.dtype) if how == "forward" else x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            if how == "buffer":
                return factor * torch.zeros(x.shape, dtype=half).add_(x.to(half) * grad.to(half)).to(grad.dtype)
            return (factor * (x.to(half) * grad.to(half)) @ ones).to(grad.dtype)

    assert verdicts(checked(Through(Square), 6, 4))["body.weight"] == verdict


def test_a_backward_that_needs_half_precision_is_not_checked_and_the_reason_is_named():
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad.to(torch.float16).view(torch.int16).view(torch.float16).reshape(grad.shape).to(grad.dtype)

    found = checked(Through(Same), 6, 4)
    assert verdicts(found)["body.weight"] == "NOT CHECKED"
    assert any("body.weight: backward does not run in float64 (RuntimeError" in each for each in found.not_checked)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, decay):
        ctx.save_for_backward(x, decay)
        return (x * decay > 0.4).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, decay = ctx.saved_tensors
        slope = grad / (1 + (x * decay - 0.4).abs()) ** 2
        return slope * decay, (slope * x).sum()


def test_a_surrogate_is_called_one_if_only_large_changes_of_its_input_reach_the_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.decay = nn.Parameter(torch.tensor(0.1))

        def forward(self, x):
            return Spike.apply(x, self.decay)

    assert verdicts(checked(Net(), inputs=torch.ones(3, 1))) == {"decay": "SUBSTITUTED"}


@pytest.mark.parametrize("change", ["reverse", "scale", "limit"])
def test_a_function_that_leaves_values_as_they_are_is_there_for_its_backward(change):
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return {"reverse": -grad, "scale": 0.1 * grad, "limit": grad.clamp(-0.01, 0.01)}[change]

    class Net(nn.Linear):
        def forward(self, x):
            return Same.apply(super().forward(x)).tanh()

    found = checked(Net(4, 2), 5, 4)
    assert set(verdicts(found).values()) == {"SUBSTITUTED"}
    assert "changed on purpose" in found.parameters[0].causes[0].why


@pytest.mark.parametrize(
    ("hook", "verdict"),
    [
        (lambda grad: grad * torch.eye(4, dtype=grad.dtype)[:2], "SUBSTITUTED"),
        (lambda grad: grad.clamp(-1e-3, 1e-3), "SUBSTITUTED"),
        (lambda grad: 2 * grad, "WRONG"),
        (lambda grad: -grad, "WRONG"),
    ],
)
def test_a_hook_on_a_weight_may_take_away(hook, verdict):
    model = nn.Linear(4, 2)
    model.weight.register_hook(hook)
    assert verdicts(checked(model, 5, 4)) == {"weight": verdict, "bias": "OK"}


class OwnLoss(nn.Module):
    """Takes labels and gives its loss beside the scores, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 5), nn.Linear(5, 9)

    def forward(self, input_ids, labels=None):
        scores = self.head(self.embedding(input_ids))
        loss = None if labels is None else nn.functional.cross_entropy(scores.movedim(-1, 1), labels)
        return {"loss": loss, "scores": scores}


def test_a_model_that_takes_labels_and_gives_its_loss():
    words = torch.randint(0, 9, (3, 4))
    model = OwnLoss()
    batch = Batch.sort({"input_ids": words, "labels": words}, model, has_loss=False)
    assert (set(batch.keywords), batch.target) == ({"input_ids", "labels"}, None)
    found = deconv_cli.check_gradients(model, **batch.keywords)
    assert set(verdicts(found).values()) == {"OK"}
    assert found.loss == pytest.approx(float(model(words, words)["loss"].detach()), rel=1e-5)
    assert Batch.sort({"input_ids": words, "labels": words}, model).target is words
