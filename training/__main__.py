"""Train the denoiser of the prior for photographs: `python -m training --folder FOLDER`.

It trains the denoiser alone first, then within the restoration. It continues from the last checkpoint in the folder.
With its defaults it makes the weights in the package.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deconv_cli.saved_files import WEIGHTS
from deconv_cli.solvers.denoiser import Denoiser
from training import unrolled
from training.degrade import degrade, draw_patches
from training.photographs import shrunk
from training.unrolled import Restoration, draw_sample

SIZES = {
    "small": ((16, 32, 64), (1, 1, 2)),
    "medium": ((24, 48, 96), (1, 1, 2)),
    "large": ((32, 64, 96), (2, 2, 2)),
}
SIDE = 80
AVERAGING = 0.999
EVERY = 250
"""Steps between two checkpoints."""
WARM_UP = 200
FALL = 0.6
"""The part of the second stage in which the rate falls to zero, in a straight line."""


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        name: of its checkpoint and its loss curve.
        n_steps: in all.
        batch: patches a step.
        rate: the largest learning rate.
        limit: of the gradient's norm.
        fall: the last part of the steps, in which the rate falls to zero.
        seed: of its patches and noise.
    """

    name: str
    n_steps: int
    batch: int
    rate: float
    limit: float
    fall: float
    seed: int = 0


def train(
    model: nn.Module,
    stage: Stage,
    folder: Path,
    loss_of: Callable[[nn.Module, Tensor, np.random.Generator], Tensor],
) -> nn.Module:
    """Train a model, or go on with it.

    Args:
        model: with its first weights.
        stage: how.
        folder: of photographs and checkpoints.
        loss_of: draws a batch out of clean patches, and gives the loss.

    Returns:
        The model with averaged weights.
    """
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, stage))
    checkpoint, log = folder / f"{stage.name}.pt", folder / f"{stage.name}.csv"
    parts = {"model": model, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved.pop("step")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    pictures = shrunk(folder)
    losses: list[float] = []
    began = time.process_time()
    for step in range(first, stage.n_steps):
        rng = np.random.default_rng([stage.seed, step])  # each step draws the same, interrupted or not
        loss = loss_of(model, draw_patches(pictures, stage.batch, SIDE, rng), rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.limit)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            weight = 1 - min(AVERAGING, (step + 1) / (step + 10))
            for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, weight)
        losses.append(loss.item())
        if (step + 1) % EVERY == 0 or step + 1 == stage.n_steps:
            torch.save(
                {"step": step + 1} | {n: p.state_dict() for n, p in parts.items()}, checkpoint.with_suffix(".new")
            )
            checkpoint.with_suffix(".new").replace(checkpoint)
            with log.open("a", newline="") as file:
                csv.writer(file).writerow([step + 1, f"{np.mean(losses):.5f}", f"{time.process_time() - began:.0f}"])
            losses.clear()
    return averaged


def _rate(step: int, stage: Stage) -> float:
    """Warm up, hold, and fall in a straight line."""
    left = 1.0 if stage.fall == 0 else (stage.n_steps - step) / (stage.fall * stage.n_steps)
    return min(1.0, (step + 1) / WARM_UP, left)


def _denoising_loss(model: nn.Module, patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Squared error of each sample, weighted so that all noise levels count about alike."""
    noisy, clean, sigma = degrade(patches, rng)
    levels = torch.cat([sigma, torch.zeros_like(sigma)], dim=1)
    error = (model(noisy, levels) - clean).square().mean(dim=(1, 2, 3))
    return (error / sigma.square().mean(dim=(1, 2, 3)) ** 0.6).mean()


def _restoring_loss(model: nn.Module, patches: Tensor, rng: np.random.Generator) -> Tensor:
    sample = draw_sample(patches, rng)
    return unrolled.loss_of(model(sample), sample)


def save(model: Restoration, path: Path) -> None:
    """Write weights in half precision, the steps, and the shape of the network."""
    denoiser = model.denoiser
    tensors = {name: value.half().contiguous() for name, value in denoiser.state_dict().items()}
    tensors["steps"] = torch.stack([model.log_levels.detach().exp(), model.log_weights.detach().exp()])
    shape = {"widths": ",".join(map(str, denoiser.widths)), "depths": ",".join(map(str, denoiser.depths))}
    save_file(tensors, str(path), metadata=shape)


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train the prior for photographs.")
    parser.add_argument("--folder", type=Path, default=Path("training/checkpoints"), help="photographs and checkpoints")
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--denoising-steps", type=int, default=7000)
    parser.add_argument("--restoring-steps", type=int, default=7000)
    parser.add_argument("--long-steps", type=int, default=20000)
    parser.add_argument("--alone-steps", type=int, default=12000)
    parser.add_argument("--last-steps", type=int, default=14000)
    parser.add_argument("--restoration-steps", type=int, default=6, help="of the splitting")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given.folder.mkdir(parents=True, exist_ok=True)
    alone = Stage(given.size, given.denoising_steps, batch=16, rate=1.5e-3, limit=0.1, fall=0)
    first = Stage(f"{given.size}_within", 4000, batch=6, rate=4e-4, limit=20.0, fall=FALL)
    second = Stage(f"{given.size}_again", given.restoring_steps, batch=6, rate=3e-4, limit=20.0, fall=FALL, seed=1)
    third = Stage(f"{given.size}_long", given.long_steps, batch=6, rate=3e-4, limit=20.0, fall=FALL, seed=2)
    fourth = Stage(f"{given.size}_alone", given.alone_steps, batch=6, rate=3e-4, limit=20.0, fall=FALL, seed=3)
    fifth = Stage(f"{given.size}_last", given.last_steps, batch=6, rate=3e-4, limit=20.0, fall=FALL, seed=4)
    denoiser = Denoiser(*SIZES[given.size]).to(memory_format=torch.channels_last)
    denoiser = train(denoiser, alone, given.folder, _denoising_loss)
    model = Restoration(denoiser, given.restoration_steps)
    for stage in (first, second, third, fourth, fifth):
        model = train(model, stage, given.folder, _restoring_loss)
    save(model, given.output)


if __name__ == "__main__":
    main()
