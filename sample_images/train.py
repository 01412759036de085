"""A short training of the network in network.py on random patches, as an example for `deconv check-grad --run`."""

import argparse

import torch
from network import Network
from torch.nn import functional

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
steps = parser.parse_args().steps

torch.manual_seed(0)
model = Network()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(steps):
    patches, labels = torch.randn(8, 1, 16, 16), torch.randint(0, 10, (8,))
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(patches), labels)
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.4f}")
