"""Gradients through time and by gate, against autograd of a loop written out."""

from __future__ import annotations

import pytest
import torch
from gradient_cases import blamed_line, checked, load_fixture
from torch import nn

handwritten, unusual = load_fixture("handwritten"), load_fixture("unusual")


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


def test_a_hand_written_loop_is_found_and_fades():
    (series,) = checked(handwritten.PlainRnn(scale=0.02), 3, 3).recurrent
    assert series.location.line == blamed_line("handwritten", "loop")
    assert len(series.norms) == 12
    assert (series.trend, series.step) == ("fades", 7)
    assert series.norms[7] < 1e-6 * series.norms[-1] < series.norms[8]


def test_a_hand_written_loop_that_explodes():
    model = handwritten.PlainRnn(scale=50.0)
    with torch.no_grad():
        model.wx.mul_(1e-22)
    (series,) = checked(model, 3, 3).recurrent
    assert (series.trend, series.step) == ("explodes", 0)
    assert series.norms[0] > 1e15 * series.norms[-1]


def test_cells_in_a_loop_are_found():
    found = checked(unusual.Cells(), 3, 6, 3)
    assert blamed_line("unusual", "cells") in {series.location.line for series in found.recurrent}
    assert {len(series.norms) for series in found.recurrent} == {6}
    assert [series.name for series in found.recurrent] == ["h", "c", "k"]


def test_states_are_told_from_what_a_step_computes_on_the_way():
    found = checked(unusual.GatesWritten(), 3, 6, 3)
    assert [series.name for series in found.recurrent] == ["c", "h"]


def test_a_step_written_as_a_function_is_found():
    found = checked(handwritten.CharRnn(), 3, 5, 7)
    assert [len(series.norms) for series in found.recurrent] == [5]


def test_layers_one_after_another_are_no_recurrence():
    assert checked(nn.Sequential(*(nn.Linear(3, 3) for _ in range(6))), 2, 3).recurrent == ()


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
