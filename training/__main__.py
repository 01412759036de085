"""Train the denoiser of the prior for photographs: `python -m training --folder FOLDER`.

Goes on from the last checkpoint in the folder. The weights in the package are what this makes with its defaults.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from deconv_cli.solvers.denoiser import WEIGHTS, Denoiser
from training.degrade import degrade, draw_patches
from training.photographs import shrunk

SIZES = {
    "small": ((16, 32, 64), (1, 1, 2)),
    "medium": ((24, 48, 96), (1, 1, 2)),
    "large": ((32, 64, 96), (2, 2, 2)),
}
BATCH = 16
SIDE = 80
RATE = 1.5e-3
AVERAGING = 0.999
EVERY = 250
"""Steps between two checkpoints."""


def loss_of(denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Squared error of each sample, weighted so that all noise levels count about alike."""
    error = (denoised - clean).square().mean(dim=(1, 2, 3))
    return (error / sigma.square().mean(dim=(1, 2, 3)) ** 0.6).mean()


def train(size: str, n_steps: int, folder: Path) -> Denoiser:
    """Train one network, or go on with it.

    Args:
        size: one of `SIZES`.
        n_steps: in all.
        folder: of photographs and checkpoints.

    Returns:
        The network with averaged weights.
    """
    torch.manual_seed(0)
    model, averaged = Denoiser(*SIZES[size]), Denoiser(*SIZES[size])
    averaged.load_state_dict(model.state_dict())
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps))
    checkpoint, log = folder / f"{size}.pt", folder / f"{size}.csv"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    pictures = shrunk(folder)
    losses: list[float] = []
    began = time.process_time()
    for step in range(first, n_steps):
        rng = np.random.default_rng([0, step])  # each step draws the same, interrupted or not
        noisy, clean, sigma = degrade(draw_patches(pictures, BATCH, SIDE, rng), rng)
        loss = loss_of(model(noisy.contiguous(memory_format=torch.channels_last), sigma), clean, sigma)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            weight = 1 - min(AVERAGING, (step + 1) / (step + 10))
            for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, weight)
        losses.append(loss.item())
        if (step + 1) % EVERY == 0 or step + 1 == n_steps:
            state = {"step": step + 1, "model": model.state_dict(), "averaged": averaged.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            with log.open("a", newline="") as file:
                csv.writer(file).writerow([step + 1, f"{np.mean(losses):.5f}", f"{time.process_time() - began:.0f}"])
            losses.clear()
    return averaged


def _rate(step: int, n_steps: int) -> float:
    """Warm up for 200 steps, hold, and fall to zero in a straight line over the last half."""
    return min(1.0, (step + 1) / 200, 2 * (n_steps - step) / n_steps)


def save(model: Denoiser, path: Path) -> None:
    """Write weights in half precision, with the shape of the network."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    shape = {"widths": ",".join(map(str, model.widths)), "depths": ",".join(map(str, model.depths))}
    save_file(tensors, str(path), metadata=shape)


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("training/work"), help="photographs and checkpoints")
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    save(train(given.size, given.steps, given.folder), given.output)


if __name__ == "__main__":
    main()
