"""Pictures in files, and runs over their blocks that are planned."""

import numpy as np
import torch

import deconv_cli
from deconv_cli.blocks.block_extras import NO_FILES, plan_extras, plan_file
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.invert_blocks import BlockRun, lay_out_problem
from deconv_cli.io.regions import open_regions, read_corner
from deconv_cli.settings import ReconstructionSettings

OPTIONS = {"defaults": "picture", "lam": 0.01}
BLOCKS = BlockOptions(10**8, (64, 64))


def scene(*size, seed=3):
    """Rectangles of any brightness, as sharp as pixels allow."""
    draw = torch.Generator().manual_seed(seed)
    picture = torch.full(size, 100.0)
    for _ in range(60):
        corner = [int(torch.randint(n, (1,), generator=draw)) for n in size]
        sides = [int(torch.randint(4, 4 + n // 4, (1,), generator=draw)) for n in size]
        picture[tuple(slice(at, at + side) for at, side in zip(corner, sides, strict=True))] = float(
            torch.randint(256, (1,), generator=draw)
        )
    return picture


def blurred(folder, picture, kernel, boundary):
    """Write what became of a picture; nothing is assumed outside where that is unknown."""
    made_with = "reflect" if boundary == "unknown" else boundary
    y = deconv_cli.forward(picture, kernel, boundary=made_with, dimensions=picture.ndim - 1)
    y = (y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).clamp_min(0)
    np.save(folder / "in.npy", y.numpy())
    return y


def describe(found):
    return found.record


def laid_out(folder, kernel, **options):
    source = open_regions(folder / "in.npy")
    corner = read_corner(source, are_axes_named=False)
    return lay_out_problem(source, corner, kernel, ReconstructionSettings.of(**OPTIONS | options))


def planned(folder, kernel, *, name="out.npy", blocks=BLOCKS, resume=False, force=False, extra=NO_FILES, **options):
    problem = laid_out(folder, kernel, **options)
    planned_force = None if resume else force
    target = plan_file(problem, folder / name, problem.n_channels, None, force=planned_force)
    extras = plan_extras(problem, extra, force=planned_force)
    return BlockRun.prepare(problem, target, blocks, extras=extras, resume=resume, force=force)
