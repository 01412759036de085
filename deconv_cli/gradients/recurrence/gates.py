"""The gates of recurrent layers, whose rows are stacked in one parameter."""

from __future__ import annotations

import torch
from torch import nn

GATES = {
    "LSTM": ("input", "forget", "cell", "output"),
    "GRU": ("reset", "update", "new"),
    "RNN_TANH": ("hidden",),
    "RNN_RELU": ("hidden",),
}
"""Rows of the stacked weights in the order in which torch keeps them (torch.nn.LSTM, torch.nn.GRU: Variables)."""


def gates_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """List the gates whose rows are stacked in a parameter; one name or none for what has no gates."""
    owner, _, last = name.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    if isinstance(module, nn.RNNBase) and last.startswith(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
        return GATES.get(module.mode, ())
    if isinstance(module, nn.LSTMCell):
        return GATES["LSTM"]
    return GATES["GRU"] if isinstance(module, nn.GRUCell) else ()


def gate_norms(model: nn.Module, name: str, gradient: torch.Tensor) -> dict[str, float]:
    """Measure the gradient of each gate, for a parameter of a recurrent layer."""
    gates = gates_of(model, name)
    if len(gates) < 2 or gradient.shape[0] % len(gates):
        return {}
    return {gate: float(rows.norm()) for gate, rows in zip(gates, gradient.chunk(len(gates)), strict=True)}
