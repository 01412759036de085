"""Are the layers of real networks undone: ResNet-18's first one against LSQR, and every convolution of four networks?

LSQR is SciPy's, on torch's own convolution and its transpose; the time is that of the shortest run, of those with
twice as many iterations again and again, that ends with the error of this package. Times are processor times of one
thread, which hardly depend on what else the machine does. Networks have random weights; each different convolution is
applied to a random input of its real size, compared with torch, and undone with λ = 0 by `method="auto"`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory, timed
from benchmarks.printing import Report, Target, column, count, memory, number, ratio, seconds, small, table, word

OURS, THEIRS = "deconv, {}", "SciPy, conv2d, LSQR, {}"
DTYPES = ("float32", "float64")
NETWORKS = ("resnet18", "mobilenet_v3_small", "deeplabv3_mobilenet_v3_large", "unet")
FIRST_LAYER: dict[str, Any] = {"stride": 2, "padding": 3}
GOOD = ("CLOSED_FORM", "CONVERGED")
MAX_MEMORY = 8 * 2**30
"""Bytes that one inverse may take; a layer that needs more counts as refused."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    size = scale.pick(224, 32)
    first = [
        Case(name.format(dtype), function, {"size": size, "dtype": dtype} | more)
        for dtype in DTYPES
        for name, function, more in (
            (OURS, package, {}),
            (THEIRS, scipy_lsqr, {"limit_s": scale.peer_limit_s}),
        )
    ]
    networks = [
        Case(name, network, {"name": name, "size": scale.pick(64, 32)}, None if name == "unet" else "torchvision")
        for name in NETWORKS
    ]
    return [*first, *networks]


def package(size: int, dtype: str) -> Figures:
    """Measure this package: the time for the first image, and that for each further one."""
    torch.set_num_threads(1)
    kernel, x, y = _problem(size, dtype)
    with peak_memory() as peak:
        total_s, (inverse, estimate) = timed(lambda: _solved(kernel, y, size), time.process_time)
        apply_s, _ = timed(lambda: inverse(y), time.process_time)
    return {
        "method": str(inverse.choice.method),
        "seconds": total_s,
        "further_s": apply_s,
        "error": problems.relative_error(estimate, x),
        "peak_bytes": peak.n_bytes,
    }


def _solved(kernel: Tensor, y: Tensor, size: int) -> tuple[deconv_cli.PseudoInverse, Tensor]:
    inverse = deconv_cli.pseudo_inverse(kernel, input_size=(size, size), **FIRST_LAYER)
    return inverse, inverse(y)


def scipy_lsqr(size: int, dtype: str, limit_s: float) -> Figures:
    """Measure LSQR to the error of this package; its own tests for an end are switched off."""
    from scipy.sparse.linalg import LinearOperator, lsqr

    torch.set_num_threads(1)
    kernel, x, y = _problem(size, dtype)
    goal = problems.relative_error(_solved(kernel, y, size)[1], x)

    def forward(flat: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(flat.astype(dtype)).reshape(1, *x.shape)
        return nn.functional.conv2d(image, kernel, **FIRST_LAYER).numpy().ravel()

    def adjoint(flat: np.ndarray) -> np.ndarray:
        output = torch.from_numpy(flat.astype(dtype)).reshape(1, *y.shape)
        return nn.functional.conv_transpose2d(output, kernel, **FIRST_LAYER, output_padding=1).numpy().ravel()

    operator = LinearOperator((y.numel(), x.numel()), matvec=forward, rmatvec=adjoint, dtype=dtype)
    n_iterations, spent = 8, 0.0
    while True:
        began = time.process_time()
        found = lsqr(operator, y.numpy().ravel(), atol=0, btol=0, conlim=0, iter_lim=n_iterations)[0]
        spent = time.process_time() - began
        error = problems.relative_error(torch.from_numpy(found).reshape(x.shape), x)
        if error <= goal or spent > limit_s:
            return {"seconds": spent, "error": error, "n_iterations": n_iterations}
        n_iterations *= 2


def _problem(size: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the first layer of ResNet-18 as torch does, and apply it to a photograph's size of noise."""
    torch.manual_seed(0)
    precision = torch.float32 if dtype == "float32" else torch.float64
    kernel = nn.Conv2d(3, 64, 7, bias=False).weight.detach().to(precision)
    x = torch.rand(3, size, size, dtype=precision)
    return kernel, x, deconv_cli.forward(x, kernel, **FIRST_LAYER)


def network(name: str, size: int) -> Figures:
    """Apply and undo every different convolution of a network for images of `size` × `size` pixels."""
    torch.set_num_threads(1)
    worst, n_layers, n_inverted, refusals, began = 0.0, 0, 0, dict[str, str](), time.process_time()
    for where, layer, image_size in _convolutions(name, size):
        n_layers += 1
        options = _options(layer)
        x = torch.randn(layer.in_channels, *image_size, dtype=torch.float64)
        expected = layer.double()(x[None])[0].detach()
        weight = layer.weight.detach()
        y = deconv_cli.forward(x, weight, dimensions=2, **options)
        plain = expected if layer.bias is None else expected - layer.bias.detach()[:, None, None]
        worst = max(worst, problems.relative_error(y, plain))
        try:
            inverse = deconv_cli.pseudo_inverse(
                weight.float(), input_size=image_size, dimensions=2, max_memory=MAX_MEMORY, **options
            )
            status = inverse.solve(y.float()).status
        except deconv_cli.DeconvError as error:
            refusals[where] = str(error)
            continue
        if status.name in GOOD:
            n_inverted += 1
        else:
            refusals[where] = status.value
    listed = "; ".join(f"{where}: {why}" for where, why in refusals.items())
    return {
        "n_layers": n_layers,
        "n_inverted": n_inverted,
        "forward_error": worst,
        "network_s": time.process_time() - began,
        "refused": listed or "none",
    }


def _options(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    options: dict[str, Any] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    if isinstance(layer, nn.ConvTranspose2d):
        options |= {"transposed": True, "output_padding": layer.output_padding}
    return options


def _convolutions(name: str, size: int) -> Iterator[tuple[str, nn.Conv2d, tuple[int, int]]]:
    """Give the different convolutions of a network, with the size of the image that each is applied to."""
    torch.manual_seed(0)
    model = _build(name).eval()
    seen: dict[Any, tuple[str, Any, tuple[int, int]]] = {}

    def note(where: str) -> Any:  # noqa: ANN401 (a hook of torch)
        def hook(layer: Any, inputs: Any) -> None:  # noqa: ANN401
            image_size = tuple(inputs[0].shape[2:])
            key = (type(layer), tuple(layer.weight.shape), image_size, str(_options(layer)))
            seen.setdefault(key, (where, layer, image_size))

        return hook

    for where, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_pre_hook(note(where))
    with torch.no_grad():
        model(torch.rand(1, 3, size, size))
    yield from seen.values()


def _build(name: str) -> nn.Module:
    if name == "unet":
        return UNet()
    from torchvision import models

    if name.startswith("deeplab"):
        found: nn.Module = models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
        return found
    return models.get_model(name, weights=None)


class UNet(nn.Module):
    """Two levels down by strided convolutions, two up by transposed ones (Ronneberger, Fischer and Brox, 2015)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a in widths[:-1])
        self.leave = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment images `(B, 3, H, W)` whose sides four divides."""
        kept = [self.enter(x)]
        for down in self.down:
            kept.append(down(kept[-1].relu()))
        x = kept.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            x = join(torch.cat([up(x.relu()), kept.pop()], dim=1))
        found: Tensor = self.leave(x)
        return found


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    ours, theirs = ({d: outcomes[name.format(d)] for d in DTYPES} for name in (OURS, THEIRS))
    targets = [
        Target("ResNet-18's first layer, exact inverse", 2.0, number(ours["float32"], "seconds"), False, " s"),
        *(
            Target(
                f"LSQR to the same error, against it, {dtype}",
                1.0,
                ratio(number(theirs[dtype], "seconds"), number(ours[dtype], "seconds")),
                True,
                " ×",
            )
            for dtype in DTYPES
        ),
    ]
    measured = [outcomes[name] for name in NETWORKS if "failed" not in outcomes[name]]
    targets.append(
        Target(
            "convolutions of the networks, forward as torch: largest relative error",
            1e-12,
            max((number(figures, "forward_error") or 0.0 for figures in measured), default=None),
            False,
        )
    )
    rows = [
        table(
            "The first layer of ResNet-18 (7 × 7, stride 2, 3 → 64 channels) on 224 × 224 white pixels, λ = 0",
            "solver",
            {name: figures for name, figures in outcomes.items() if name not in NETWORKS},
            [
                word("method", "method"),
                column("processor time", "seconds", seconds),
                column("a further image", "further_s", seconds),
                column("error", "error", small),
                column("iterations", "n_iterations", count),
                column("peak memory", "peak_bytes", memory),
            ],
        ),
        table(
            "Every different convolution of a network for images of 64 × 64 pixels, float32, λ = 0",
            "network",
            {name: outcomes[name] for name in NETWORKS},
            [
                column("convolutions", "n_layers", count),
                column("inverted", "n_inverted", count),
                column("largest error of forward", "forward_error", small),
                column("processor time for all", "network_s", seconds),
                word("not inverted", "refused"),
            ],
        ),
    ]
    return Report("Layers of networks", targets, rows)
