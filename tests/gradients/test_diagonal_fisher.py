"""The Fisher diagonals against their definitions, written out by loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from deconv_cli.errors import UsageError
from deconv_cli.gradients.fisher_diagonal import diagonal_fisher
from deconv_cli.gradients.inputs import Batch
from deconv_cli.gradients.losses import named_loss, projection


def network(n_out=3):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, n_out)).double().eval()


def batch_of(model, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return Batch((x,), {}, torch.randint(0, 3, (n,), generator=generator))


def squares(model, value):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad], retain_graph=True)
    return {name: gradient.square() for name, gradient in zip(names, found, strict=True)}


def added(total, part, weight=1.0):
    return {name: total.get(name, 0) + weight * tensor for name, tensor in part.items()}


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance)


def fisher(model, batches, loss="cross-entropy", **options):
    function = named_loss(loss) if isinstance(loss, str) else loss
    return diagonal_fisher(model, batches, loss if isinstance(loss, str) else "mine", function, **options)


def assert_mean_of_squares(found, model, batch, loss):
    expected = {}
    for x, y in zip(batch.arguments[0], batch.target, strict=True):
        expected = added(expected, squares(model, loss(model(x[None]), y[None])), 1 / 6)
    assert_close(found.diagonal, expected)


def test_empirical_is_the_mean_of_squares():
    model = network()
    batch = batch_of(model)
    found = fisher(model, [batch])
    assert found.loop_reason is None
    assert_mean_of_squares(found, model, batch, functional.cross_entropy)


def test_it_does_not_depend_on_how_the_data_are_cut():
    model = network()
    batch = batch_of(model)
    cut = [batch.map(lambda t: t[:4]), batch.map(lambda t: t[4:])]
    assert_close(fisher(model, cut).diagonal, fisher(model, [batch]).diagonal)


def test_exact_is_the_expectation_over_classes():
    model = network()
    batch = batch_of(model)
    expected = {}
    for x in batch.arguments[0]:
        logs = model(x[None]).log_softmax(1)[0]
        for log in logs:
            expected = added(expected, squares(model, log), float(log.exp().detach()) / 6)
    assert_close(fisher(model, [batch], kind="exact").diagonal, expected)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "bce-with-logits"])
def test_gauss_newton_equals_the_exact_fisher_of_an_exponential_family(loss):
    model = network()
    batch = batch_of(model)
    if loss != "cross-entropy":
        batch = Batch(batch.arguments, {}, torch.rand(6, 3, dtype=torch.float64))
    exact, ggn = (fisher(model, [batch], loss, kind=kind).diagonal for kind in ("exact", "ggn"))
    assert_close(ggn, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", "bce-with-logits"])
def test_sampled_approaches_the_exact_one(loss):
    model = network()
    batch = batch_of(model)
    without_target = Batch(batch.arguments, {}, None)
    exact = fisher(model, [without_target], loss, kind="exact")
    sampled = fisher(model, [without_target], loss, kind="sampled", n_draws=2000)
    assert sampled.trace == pytest.approx(exact.trace, rel=0.1)


def test_log_probabilities_and_logits_have_one_fisher():
    model = network()
    with_logs = nn.Sequential(*model, nn.LogSoftmax(1))
    batch = batch_of(model)
    exact = fisher(model, [batch], kind="exact").diagonal
    assert_close(fisher(with_logs, [batch], "nll", kind="exact").diagonal, exact)


class Steps(nn.Module):
    """Five classes at each of three steps, on the last axis or on the second."""

    def __init__(self, *, classes_last):
        super().__init__()
        self.layer = nn.Linear(4, 5).double()
        self.classes_last = classes_last

    def forward(self, x):
        y = self.layer(x)
        return y if self.classes_last else y.transpose(1, 2)


@pytest.mark.parametrize("loss", ["cross-entropy", "nll"])
@pytest.mark.parametrize("kind", ["empirical", "exact", "ggn"])
def test_classes_on_the_last_axis_give_what_they_give_on_the_second(loss, kind):
    last, second = Steps(classes_last=True), Steps(classes_last=False)
    second.load_state_dict(last.state_dict())
    if loss == "nll":
        last, second = nn.Sequential(last, nn.LogSoftmax(2)), nn.Sequential(second, nn.LogSoftmax(1))
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    batch = Batch((x,), {}, torch.randint(0, 5, (6, 3)))
    if (loss, kind) == ("nll", "ggn"):
        batch = batch.map(lambda t: t[:2])
    found, expected = (fisher(model, [batch], loss, kind=kind) for model in (last, second))
    assert_close(found.diagonal, expected.diagonal)
    assert_close(found.batch_mean_squared, expected.batch_mean_squared) if kind == "empirical" else None


def test_the_square_of_the_mean_gradient_is_shown_beside():
    model = network()
    batch = batch_of(model, 64)
    mean = functional.cross_entropy(model(batch.arguments[0]), batch.target)
    assert_close(fisher(model, [batch]).batch_mean_squared, squares(model, mean))


class Looped(nn.Module):
    """Branches on a value, so that vmap cannot go there."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * (2.0 if x.sum().item() > -1e9 else 1.0)


@pytest.mark.parametrize("kind", ["empirical", "exact", "ggn"])
def test_a_loop_where_vmap_cannot_go(kind):
    model = network()
    batch = batch_of(model)
    looped = fisher(Looped(model), [batch], kind=kind)
    assert looped.loop_reason
    with torch.no_grad():
        model[2].weight.mul_(2)
        model[2].bias.mul_(2)
    plain = fisher(model, [batch], kind=kind)
    assert plain.loop_reason is None
    factor = {"inner.0.weight": 1.0, "inner.0.bias": 1.0, "inner.2.weight": 4.0, "inner.2.bias": 4.0}
    expected = {f"inner.{name}": factor[f"inner.{name}"] * tensor for name, tensor in plain.diagonal.items()}
    assert_close(looped.diagonal, expected)


def test_a_loss_of_the_users_is_taken_sample_by_sample():
    model = network()
    batch = batch_of(model)

    def loss(output, target):
        return functional.cross_entropy(output, target) + 3 * output.square().mean()

    assert_mean_of_squares(fisher(model, [batch], loss), model, batch, loss)


@pytest.mark.parametrize("loss", ["mse", "bce-with-logits"])
@pytest.mark.parametrize("kind", ["empirical", "ggn"])
def test_targets_without_the_axis_of_a_single_output(loss, kind):
    model, x, target = network(1), torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 1)
    found, expected = (fisher(model, [Batch((x,), {}, t)], loss, kind=kind) for t in (target[:, 0], target))
    assert_close(found.diagonal, expected.diagonal)
    assert_close(found.batch_mean_squared, expected.batch_mean_squared)
    with pytest.raises(UsageError, match=r"should have the shape of the outputs"):
        fisher(model, [Batch((x,), {}, target.expand(6, 2))], loss, kind=kind)


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].weight.requires_grad_(False)
    assert set(fisher(model, [batch_of(model)]).diagonal) == {"0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("name", "loss", "n_batches", "words"),
    [
        ("projection", projection, 1, "likelihood"),
        ("mine", lambda output, target: output.sum(), 1, "needs a likelihood"),
        ("cross-entropy", functional.cross_entropy, 0, "no samples"),
    ],
)
def test_what_has_no_fisher_matrix(name, loss, n_batches, words):
    model = network()
    with pytest.raises(UsageError, match=words):
        diagonal_fisher(model, [batch_of(model)] * n_batches, name, loss, kind="exact")
