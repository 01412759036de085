"""Is λ chosen well from the data alone, does the predicted error come true, and what are the edges worth?

Photographs that come with scikit-image are blurred by six kernels as parts of larger scenes, noised and rounded to 256
levels, so that no method inverts the model that made them. The filters of scikit-image are given the best λ by the
truth, and mirrored or tapered edges; this package sees the data alone. Its predicted error is compared with the real
one in three bands by distance from the edge.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale
from benchmarks.printing import Report, Table, Target, decibels
from deconv_cli.diagnostics.predicted_error import ErrorBand

SIZE = 256
BAND = 16
ERROR_BANDS = ((0, 4), (4, 16), (16, SIZE))
ERROR_TOLERANCE = 0.25
NOISES = (0.001, 0.01, 0.05)
LAMBDAS = tuple(10.0 ** (k / 4) for k in range(-20, 5))
BALANCES = tuple(10.0 ** (k / 2) for k in range(-10, 9))
PHOTOGRAPHS = {
    "chelsea": ("chelsea.png", (20, 80)),
    "coffee": ("coffee.png", (100, 150)),
    "rocket": ("rocket.jpg", (80, 200)),
    "astronaut": ("astronaut.png", (30, 120)),
    "camera": ("camera.png", (80, 140)),
    "motorcycle": ("motorcycle_left.png", (60, 200)),
}
KERNEL_NAMES = ("Gaussian", "disk", "motion", "anisotropic", "mixing", "learned")
PEERS = ("wiener, mirrored", "wiener, tapered", "unsupervised, mirrored", "unsupervised, tapered")


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    names = scale.pick(list(PHOTOGRAPHS), ["camera"])
    kernels = scale.pick(KERNEL_NAMES, KERNEL_NAMES[:1])
    size = scale.pick(SIZE, 64)
    return [
        Case(f"{name}, {kernel}", restored, {"name": name, "kernel": kernel, "size": size}, "skimage")
        for name in names
        for kernel in kernels
    ]


def restored(name: str, kernel: str, size: int) -> Figures:
    """Measure the choice of λ and the edges for one photograph and one kernel, at every noise."""
    torch.set_num_threads(1)  # the pictures are small
    taps = _kernel(kernel)
    figures: Figures = {}
    for noise in NOISES:
        y, truth = _seen(name, taps, noise, size)
        found = {lam: _restore(y, taps, lam) for lam in LAMBDAS}
        best = max(problems.psnr(estimate, truth) for estimate in found.values())
        result = deconv_cli.invert(y, taps, boundary="unknown", penalty="gradient", lam="auto", truth=truth)
        figures[f"{noise}: best"] = best
        figures[f"{noise}: loss"] = best - problems.psnr(result.image, truth)
        figures[f"{noise}: edge"] = problems.psnr(result.image, truth, BAND)
        figures[f"{noise}: λ"] = result.lam
        assert result.predicted_error is not None
        for low, high in ERROR_BANDS:
            figures[f"{noise}: predicted, {low}"] = _error_ratio(result.predicted_error.bands, low, high)
        for peer in PEERS:
            figures[f"{noise}: {peer}"] = _best_edge(peer, y, taps, truth)
    return figures


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    known = {name: figures for name, figures in outcomes.items() if "failed" not in figures}

    def values(noise: float, what: str) -> list[float]:
        return [float(figures[f"{noise}: {what}"]) for figures in known.values()]

    losses = [loss for noise in NOISES for loss in values(noise, "loss")]
    targets = [
        Target("automatic λ: dB lost to the best λ, median", 0.3, statistics.median(losses) if losses else None),
        Target("automatic λ: dB lost to the best λ, at worst", 1.0, max(losses, default=None)),
    ]
    ratios = {
        low: [ratio for noise in NOISES for ratio in values(noise, f"predicted, {low}")] for low, _ in ERROR_BANDS
    }
    every_ratio = [ratio for band in ratios.values() for ratio in band]
    targets.append(
        Target(
            "predicted error: bands within a quarter of the real one",
            90.0,
            100 * _share_within(every_ratio) if every_ratio else None,
            is_floor=True,
            unit=" %",
        )
    )
    rows = []
    for noise in NOISES:
        if not known:
            continue
        ours = statistics.median(values(noise, "edge"))
        theirs = [statistics.median(values(noise, peer)) for peer in PEERS]
        targets.append(
            Target(
                f"noise {noise:.1%}: PSNR in the outer {BAND} pixels above the best of the others, median",
                0.0,
                ours - max(theirs),
                is_floor=True,
                unit=" dB",
            )
        )
        rows.append([f"{noise:.1%}", decibels(ours), *(decibels(value) for value in theirs)])
    by_case = [
        [
            name,
            *(
                f"{float(figures[f'{noise}: best']):.2f} dB, {-float(figures[f'{noise}: loss']):+.2f} at "
                f"λ = {float(figures[f'{noise}: λ']):.1e}"
                for noise in NOISES
            ),
        ]
        for name, figures in known.items()
    ]
    tables = [
        Table(
            f"PSNR in the outer {BAND} pixels, median over all photographs and kernels. The filters of scikit-image "
            "have the best λ by the truth (`wiener`) or choose their own, and take the channels one by one.",
            ["noise", "deconv, λ auto", *(f"skimage {peer}" for peer in PEERS)],
            rows,
        ),
        Table(
            "The predicted error divided by the real one, root mean squares over all pixels of a band.",
            ["pixels from the edge", "within a quarter", "median", "least", "largest"],
            [
                [
                    f"{low} to {high - 1}" if high < SIZE else f"{low} and more",
                    f"{_share_within(ratios[low]):.0%} of {len(ratios[low])}",
                    *(f"{figure(ratios[low]):.2f}" for figure in (statistics.median, min, max)),
                ]
                for low, high in ERROR_BANDS
                if ratios[low]
            ],
        ),
        Table(
            "The best PSNR that any λ gives, and what the automatic choice loses to it.",
            ["photograph, kernel", *(f"noise {noise:.1%}" for noise in NOISES)],
            by_case,
        ),
    ]
    return Report("The choice of λ, the predicted error, and the edges", targets, tables)


def _error_ratio(bands: Sequence[ErrorBand], low: int, high: int) -> float:
    """Divide the predicted error of some bands by the real one."""
    kept = [band for band in bands if low <= band.distance < high]
    predicted = sum(band.n_pixels * band.predicted**2 for band in kept)
    return math.sqrt(predicted / sum(band.n_pixels * (band.actual or 0.0) ** 2 for band in kept))


def _share_within(ratios: Sequence[float]) -> float:
    """Compute the share of the predictions within the tolerance of the real error."""
    return sum(abs(ratio - 1) <= ERROR_TOLERANCE for ratio in ratios) / len(ratios)


def _restore(y: Tensor, taps: Tensor, lam: float) -> Tensor:
    return deconv_cli.invert(y, taps, boundary="unknown", penalty="gradient", lam=lam).image


def _seen(name: str, taps: Tensor, noise: float, size: int) -> tuple[Tensor, Tensor]:
    """See a piece of a scene: the data of a frame, and the truth within it."""
    import skimage

    file_name, (top, left) = PHOTOGRAPHS[name]
    picture = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / file_name), dtype=np.float32) / 255
    scene = torch.from_numpy(picture)[..., None] if picture.ndim == 2 else torch.from_numpy(picture[..., :3])
    scene = scene.permute(2, 0, 1)
    if taps.ndim == 2:
        scene = scene.mean(dim=0, keepdim=True)
    elif scene.shape[0] == 1:
        scene = scene.expand(3, -1, -1)
    rows, columns = taps.shape[-2:]
    before = ((rows - 1) // 2, (columns - 1) // 2)
    piece = scene[:, top - before[0] : top - before[0] + size + rows - 1]
    piece = piece[..., left - before[1] : left - before[1] + size + columns - 1].contiguous()
    y = deconv_cli.forward(piece, taps, padding="valid")
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    return (255 * y).round() / 255, scene[:, top : top + size, left : left + size]


def _kernel(name: str) -> Tensor:
    """Give taps, `(k, k)` or `(3, 3, k, k)` in float32."""
    gaussian = _gaussian(2.0, 2.0, 0.0, 13)
    if name == "mixing":
        colors = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.75, 0.15], [0.05, 0.2, 0.75]])
        return colors[:, :, None, None] * _gaussian(1.5, 1.5, 0.0, 9)
    if name == "learned":
        noise = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(3))
        return torch.eye(3)[:, :, None, None] * _gaussian(1.2, 1.2, 0.0, 5) + 0.03 * noise
    single: dict[str, Callable[[], Tensor]] = {
        "Gaussian": lambda: gaussian,
        "disk": lambda: problems.disk_kernel(9).float(),
        "motion": _curved_motion,
        "anisotropic": lambda: _gaussian(3.0, 1.0, 0.5, 17),
    }
    return single[name]()


def _gaussian(along: float, across: float, angle: float, size: int) -> Tensor:
    steps = torch.arange(size, dtype=torch.float64) - size // 2
    x = math.cos(angle) * steps + math.sin(angle) * steps[:, None]
    y = -math.sin(angle) * steps + math.cos(angle) * steps[:, None]
    taps = torch.exp(-0.5 * ((x / along).square() + (y / across).square()))
    return (taps / taps.sum()).float()


def _curved_motion(size: int = 17) -> Tensor:
    """Spread a curved path over the pixels that it passes."""
    time = np.linspace(0, 1, 400)
    rows = size // 2 + 4 * np.sin(2.2 * np.pi * time) * time
    columns = size // 2 + (time - 0.5) * (size - 4)
    taps = np.zeros((size, size))
    for row, column in zip(rows, columns, strict=True):
        i, j = math.floor(row), math.floor(column)
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            taps[i + a, j + b] += (1 - abs(row - i - a)) * (1 - abs(column - j - b))
    return torch.from_numpy(taps / taps.sum()).float()


def _best_edge(peer: str, y: Tensor, taps: Tensor, truth: Tensor) -> float:
    """Restore channel by channel, and measure the outer pixels; `wiener` with the best of its balances."""
    from skimage.restoration import unsupervised_wiener, wiener

    method, edge = peer.split(", ")
    diagonal = taps[None].expand(len(y), -1, -1) if taps.ndim == 2 else torch.stack([taps[c, c] for c in range(3)])
    planes = [
        # These filters convolve: the taps of a correlation are turned around.
        (_prepared(plane.numpy(), kernel.numpy(), edge), kernel.numpy()[::-1, ::-1])
        for plane, kernel in zip(y, diagonal, strict=True)
    ]
    reach = max(taps.shape[-2:]) if edge == "mirrored" else 0
    inner = slice(reach, -reach or None)

    def edge_psnr(restore: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        found = np.stack([restore(plane, kernel)[inner, inner] for plane, kernel in planes])
        return problems.psnr(torch.from_numpy(found), truth, BAND)

    if method == "unsupervised":
        return edge_psnr(lambda plane, kernel: unsupervised_wiener(plane, kernel, rng=0)[0])
    return max(edge_psnr(lambda plane, kernel, b=balance: wiener(plane, kernel, b)) for balance in BALANCES)


def _prepared(plane: np.ndarray, kernel: np.ndarray, edge: str) -> np.ndarray:
    """Mirror a picture beyond its edges, or let it run into its own blur there, weighed by the kernel's correlation."""
    if edge == "mirrored":
        return np.pad(plane, max(kernel.shape), mode="reflect")
    spectrum = np.fft.rfft2(kernel, plane.shape)
    blurred = np.fft.irfft2(np.fft.rfft2(plane) * spectrum.conj(), plane.shape)
    weights = []
    for axis, length in enumerate(plane.shape):
        line = kernel.sum(axis=1 - axis)
        correlation = np.fft.irfft(np.abs(np.fft.rfft(line, length - 1)) ** 2, length - 1)
        weights.append(1 - np.append(correlation, correlation[0]) / correlation.max())
    alpha = np.outer(*weights)
    return alpha * plane + (1 - alpha) * np.roll(blurred, [k // 2 for k in kernel.shape], (0, 1))
