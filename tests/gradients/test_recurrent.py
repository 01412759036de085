"""Gradients through time and by gate, against autograd of a loop written out."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import checked
from torch import nn


class Last(nn.Module):
    """The last output of a recurrent layer, and a part of its final state."""

    def __init__(self, layer, *, of_state=False):
        super().__init__()
        self.layer = layer
        self.of_state = of_state

    def forward(self, x):
        output, state = self.layer(x)
        if self.of_state:
            return (state[0] if isinstance(state, tuple) else state).transpose(0, 1)
        return output


def loop_of_cells(layer, x):
    """Run a single layer with torch's own cells, keeping every state."""
    kinds = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell}
    cell = kinds[layer.mode](layer.input_size, layer.hidden_size).double()
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in layer.state_dict().items()})
    hidden, states = None, []
    for t in range(x.shape[1]):
        hidden = cell(x[:, t], hidden)
        states.append(hidden[0] if isinstance(hidden, tuple) else hidden)
    return states


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("of_state", [False, True])
def test_norms_by_step_are_those_of_a_loop_of_cells(kind, of_state):
    model = Last(kind(3, 4, batch_first=True), of_state=of_state)
    x = torch.randn(2, 6, 3)

    def loss(output):
        return output.square().sum() if of_state else output[:, -1].square().sum()

    (series,) = checked(model, inputs=x, loss=loss).recurrent
    states = loop_of_cells(model.layer.double(), x.double())
    gradients = torch.autograd.grad(states[-1].square().sum(), states)
    assert series.norms == pytest.approx([float(gradient.norm()) for gradient in gradients], rel=1e-9)
    assert series.trend == "steady"


def test_every_layer_and_direction_is_told():
    model = Last(nn.GRU(3, 4, num_layers=2, bidirectional=True))
    found = checked(model, 5, 2, 3)
    assert [series.name for series in found.recurrent] == [
        "layer layer 0",
        "layer layer 0 backwards",
        "layer layer 1",
        "layer layer 1 backwards",
    ]
    assert {len(series.norms) for series in found.recurrent} == {5}


@pytest.mark.parametrize(
    ("kind", "gates"),
    [(nn.LSTM, ["input", "forget", "cell", "output"]), (nn.GRU, ["reset", "update", "new"]), (nn.RNN, [])],
)
def test_gradients_by_gate(kind, gates):
    model = Last(kind(3, 4, batch_first=True))
    found = checked(model, 2, 6, 3)
    for finding in found.parameters:
        assert list(finding.gates) == gates
        if gates:
            total = sum(norm**2 for norm in finding.gates.values()) ** 0.5
            assert total == pytest.approx(finding.gradient_norm, rel=1e-9)


def test_a_recurrence_that_explodes():
    model = Last(nn.RNN(3, 4, nonlinearity="relu", batch_first=True, bias=False))
    model.layer.weight_hh_l0.data = 4 * torch.eye(4)
    model.layer.weight_ih_l0.data.abs_()
    found = checked(model, inputs=torch.rand(2, 24, 3), loss=lambda output: output[:, -1].sum())
    (series,) = found.recurrent
    assert (series.trend, series.step) == ("explodes", 0)
    (finding,) = [finding for finding in found.general if finding.verdict == "EXPLODING"]
    assert "of 24 steps" in finding.causes[0].why
