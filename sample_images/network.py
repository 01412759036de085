"""A small network whose weights are in network.safetensors; see make.py."""

import torch
from torch import nn


class Network(nn.Module):
    """Two convolutions and a recurrent layer along the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.rows = nn.GRU(4 * 8, 12, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify pictures `(B, 1, 16, 16)` into ten classes, logits `(B, 10)`."""
        features = torch.relu(self.second(torch.relu(self.first(x))))
        rows = features.permute(0, 2, 1, 3).flatten(2)
        return self.head(self.rows(rows)[0][:, -1])
