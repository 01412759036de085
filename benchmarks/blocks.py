"""Is a picture or stack that was restored in blocks what is restored as a whole, and is that of the usual tiles?"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, timed
from benchmarks.printing import Report, Target, column, number, ratio, seconds, small, table, times
from deconv_cli.blocks.block_plan import BlockOptions
from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
from deconv_cli.diagnostics.stored_samples import NEARLY_FULL
from deconv_cli.solvers.clipped import CLOSE_TOLERANCE

KERNELS = ("gaussian:1.5", "motion:9@30")
STACK_KERNELS = ("gaussian3d:1.5@1.2", "gaussian3d:3@1.5")
LINEAR: dict[str, object] = {"tolerance": 1e-7}
"""Corners of a frame of which nothing is known are determined by little: at 1e-6 they differ by more than seams do."""
LUCY: dict[str, object] = {"method": "richardson-lucy", "iterations": 30}
MEMORY, MEMORY_OF_STACKS = 2**30, 2 * 2**30
LIMIT = 1e-3
"""Of the range of the samples: the largest difference that is planned for."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    side = scale.pick(4096, 96)
    picture: dict[str, object] = {"size": [side] * 2, "block": [scale.pick(1024, 48)] * 2}
    exposed: dict[str, object] = {
        "size": [scale.pick(2048, 96)] * 2,
        "block": [scale.pick(512, 48)] * 2,
        "exposure": 1.6,
    }
    stack: dict[str, object] = {
        "memory": MEMORY_OF_STACKS,
        "size": scale.pick([96, 768, 768], [24, 64, 64]),
        "block": scale.pick([96, 256, 256], [24, 32, 32]),
    }
    linear = [
        Case(
            f"{name}: Tikhonov, {kernel}, λ = {lam:g}",
            blocks_and_whole,
            sizes | {"kernel": kernel, "options": {"lam": lam} | LINEAR},
        )
        for name, sizes, kernels in (("picture", picture, KERNELS), ("stack", stack, STACK_KERNELS))
        for kernel in scale.pick(kernels, kernels[:1])
        for lam in scale.pick((1e-2, 1e-1), (1e-1,))
    ]
    others = [
        Case(
            f"{name}, {kernel}",
            blocks_and_whole,
            sizes
            | {"kernel": scale.pick(kernel, "box:3" if name.startswith("picture") else kernel), "options": options},
        )
        for name, sizes, kernel, options in (
            ("picture: Richardson–Lucy", picture, KERNELS[0], LUCY),
            ("stack: Richardson–Lucy", stack, STACK_KERNELS[0], LUCY),
            *((f"picture, exposed: Tikhonov, λ = {lam:g}", exposed, KERNELS[0], {"lam": lam}) for lam in (1e-2, 1e-1)),
        )
    ]
    tiles = [
        Case(
            f"tiles of scikit-image, {name}",
            peer_tiles,
            {"size": side, "block": scale.pick(1024, 48), "method": name},
            peer="skimage",
        )
        for name in ("Wiener", "Richardson–Lucy")
    ]
    return [*linear, *others, *tiles]


def blocks_and_whole(
    kernel: str, size: list[int], block: list[int], options: dict[str, Any], memory: int = MEMORY, exposure: float = 0
) -> Figures:
    """Restore noisy data from file to file in blocks, and as a whole in memory, each in one thread.

    Under an exposure they are of 8 bits with full samples, where what is restored is a guess; all others are compared.
    """
    torch.set_num_threads(1)
    taps = deconv_cli.make_kernel(kernel)
    y, options = blurred(taps, size), options | {"defaults": "picture", "dimensions": len(size)}
    if exposure:
        y = (exposure * y).round().clamp(0, 255).byte()
    with TemporaryDirectory() as place:
        source, target = Path(place) / "in.npy", Path(place) / "out.npy"
        np.save(source, y.numpy())
        axes = "C" + "ZYX"[-len(size) :]
        files, cut = LargeFileOptions(force=True, axes=axes), BlockOptions(memory, tuple(block))
        found = invert_blocks(source, taps, target, files=files, blocks=cut, **options)
        assert found.summary is not None
        blocks = np.load(target)
    # What was chosen once for all blocks is the whole's too.
    same: dict[str, Any] = {"iterations": found.plan.choices.iterations}
    same |= {"tolerance": CLOSE_TOLERANCE} if exposure else {}
    whole_s, whole = timed(lambda: deconv_cli.invert(y, taps, **options | same))
    is_compared = y.numpy() < NEARLY_FULL * 255 if exposure else np.full(y.shape, fill_value=True)
    return {
        "difference": float(np.abs(blocks - whole.image.numpy())[is_compared].max() / found.plan.halo.range),
        "predicted": found.plan.halo.predicted,
        "halo": max(found.plan.halo.halo),
        "blocks_s": found.summary.seconds,
        "whole_s": whole_s,
    }


def peer_tiles(method: str, size: int, block: int) -> Figures:
    """Restore the same picture by another package as a whole, and in tiles that overlap by half the kernel."""
    from skimage import restoration

    taps = deconv_cli.make_kernel("gaussian:1.5")
    psf, y = taps.numpy(), blurred(taps, [size] * 2)[0].numpy() / 255
    restore = {
        "Wiener": lambda part: restoration.wiener(part, psf, 1e-2, clip=False),
        "Richardson–Lucy": lambda part: restoration.richardson_lucy(part, psf, num_iter=30, clip=False),
    }[method]
    depth, whole = psf.shape[0] // 2, restore(y)
    padded, tiled = np.pad(y, depth, mode="reflect"), np.zeros_like(whole)
    for row in range(0, size, block):
        for column_ in range(0, size, block):
            part = restore(padded[row : row + block + 2 * depth, column_ : column_ + block + 2 * depth])
            tiled[row : row + block, column_ : column_ + block] = part[depth:-depth, depth:-depth][
                : size - row, : size - column_
            ]
    inside = (
        (slice(8 * depth, -8 * depth),) * 2 if size > 16 * depth else (slice(None),) * 2
    )  # whose border differs too
    return {"difference": float(np.abs(tiled - whole)[inside].max() / np.ptp(y)), "halo": depth}


def blurred(taps: Tensor, size: list[int]) -> Tensor:
    """Blur a photograph, or cells, and add noise; shape `(1, *size)`."""
    x = (
        problems.photograph(size[0])
        if len(size) == 2
        else problems.cells((size[0], size[1], size[2]))[None].float() / 3
    )
    y = deconv_cli.forward(255 * x, taps, boundary="reflect", dimensions=len(size))
    return (y + torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).clamp_min(0)


def report(outcomes: dict[str, Figures]) -> Report:
    """Hold the figures against the targets, and lay them out."""
    own = {name: figures for name, figures in outcomes.items() if not name.startswith("tiles")}
    targets = [
        target
        for name, figures in own.items()
        for target in (
            Target(f"{name}: difference over the predicted", 1, _of_predicted(figures)),
            Target(f"{name}: predicted difference, of the range", LIMIT, number(figures, "predicted")),
        )
    ]
    columns = [
        column("difference, of the range", "difference", small),
        column("predicted", "predicted", small),
        column("halo", "halo", lambda n: f"{n:.0f}"),
        column("blocks", "blocks_s", seconds),
        column("whole", "whole_s", seconds),
        ("blocks over whole", lambda figures: times(ratio(number(figures, "blocks_s"), number(figures, "whole_s")))),
    ]
    title = (
        "A noisy photograph of 4096² in blocks of 1024², and cells of 96 × 768 × 768 in blocks of 96 × 256 × 256, "
        "against the same as a whole, one thread each, linear ones to a certificate of 1e-7; below, tiles of the same "
        "size that overlap by half the kernel, as is usual. What was exposed 1.6 times too long is of 2048² in 8 bits, "
        "in blocks of 512², and compared where it is not full."
    )
    return Report("Blocks against the whole", targets, [table(title, "what", outcomes, columns)])


def _of_predicted(figures: Figures) -> float | None:
    return ratio(number(figures, "difference"), number(figures, "predicted"))
