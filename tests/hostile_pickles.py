"""Pickles that leave a trace where they are run, and models with members that no model has."""

import os
from pathlib import Path

from torch import nn


class MakesFolder:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def with_members(**members: object) -> nn.Module:
    """Make a layer some of whose members are others."""
    model = nn.Linear(3, 2)
    vars(model).update(members)
    return model
