"""Pickles that leave a trace where they are run, and models with members that no model has."""

import os
import warnings
from pathlib import Path

import torch
from torch import nn


class MakesFolder:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def not_dense() -> dict[str, torch.Tensor]:
    """Make tensors that are not stored sample by sample, by the word for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)]),
            "sparse": torch.eye(4).to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.quint8),
            "meta device": torch.ones(4, 4, device="meta"),
        }


def with_members(**members: object) -> nn.Module:
    """Make a layer some of whose members are others."""
    model = nn.Linear(3, 2)
    vars(model).update(members)
    return model
