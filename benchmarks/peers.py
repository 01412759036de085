"""How fast do other packages undo `F.conv2d(x, K, padding=1)`, and how accurately?

No other package has an inverse of this operator; each has an iteration, and ways to give it the operator. All solve
the same least-squares problem without a penalty, from zero, and stop after a given number of
iterations. SigPy is measured twice: with its own multi-channel convolution, cropped, and with torch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import deconv_cli
from benchmarks import problems
from benchmarks.measuring import Case, Figures, Scale, peak_memory, timed
from benchmarks.printing import Report, Target, column, count, memory, number, seconds, small, table

OURS = "deconv"
GOAL = 1e-3
# Enough for the runs with fewer iterations that come before the last one, and for narrowing down.
PATIENCE = 8

Solve = Callable[[int], Tensor]
"""Run a number of iterations from the start, and give the estimate `(C, H, W)`."""


def cases(scale: Scale) -> list[Case]:
    """List what is measured."""
    sizes: dict[str, object] = {"size": scale.pick(128, 16), "n_channels": scale.pick(32, 4)}
    asked = sizes | {"limit_s": scale.peer_limit_s}
    limit = 60 + PATIENCE * scale.peer_limit_s
    return [
        Case(OURS, package, sizes),
        Case("SigPy, ConvolveData, conjugate gradients", sigpy_convolve, asked, "sigpy", limit_s=limit),
        Case("SigPy, conv2d, conjugate gradients", sigpy_conv2d, asked, "sigpy", limit_s=limit),
        Case("PyLops, conv2d, LSQR", pylops_lsqr, asked, "pylops", limit_s=limit),
        Case("PyLops, conv2d, CGLS", pylops_cgls, asked, "pylops", limit_s=limit),
        Case("deepinv, conv2d, LSQR", deepinv_lsqr, asked, "deepinv", limit_s=limit),
    ]


def package(size: int, n_channels: int) -> Figures:
    """Measure this package: the time for the first image, and that for each further one."""
    kernel, x, y = _problem(size, n_channels)
    with peak_memory() as peak:
        build_s, inverse = timed(lambda: deconv_cli.pseudo_inverse(kernel, input_size=(size, size), boundary="zero"))
        apply_s, estimate = timed(lambda: inverse(y))
    return {
        "seconds": build_s + apply_s,
        "further_s": apply_s,
        "error": problems.relative_error(estimate, x),
        "peak_bytes": peak.n_bytes,
    }


def sigpy_convolve(size: int, n_channels: int, limit_s: float) -> Figures:
    """Measure SigPy with its own multi-channel convolution, cropped to what zero padding leaves of it."""
    import sigpy

    kernel, x, y = _problem(size, n_channels)
    flipped = kernel.flip(-2, -1).numpy()  # SigPy's convolution is a true one
    full = sigpy.linop.ConvolveData(tuple(x.shape), flipped, mode="full", multi_channel=True)
    return _least_time(_sigpy_solver(sigpy.linop.Resize(list(y.shape), full.oshape) * full, y), x, limit_s)


def sigpy_conv2d(size: int, n_channels: int, limit_s: float) -> Figures:
    """Measure SigPy with torch's convolution as its operator."""
    import sigpy

    kernel, x, y = _problem(size, n_channels)

    class Forward(sigpy.linop.Linop):
        def __init__(self) -> None:
            super().__init__(tuple(y.shape), tuple(x.shape))

        def _apply(self, image: np.ndarray) -> np.ndarray:
            return _forward(torch.from_numpy(image), kernel).numpy()

        def _adjoint_linop(self) -> sigpy.linop.Linop:
            return Adjoint()

    class Adjoint(sigpy.linop.Linop):
        def __init__(self) -> None:
            super().__init__(tuple(x.shape), tuple(y.shape))

        def _apply(self, output: np.ndarray) -> np.ndarray:
            return _adjoint(torch.from_numpy(output), kernel).numpy()

        def _adjoint_linop(self) -> sigpy.linop.Linop:
            return Forward()

    return _least_time(_sigpy_solver(Forward(), y), x, limit_s)


def pylops_lsqr(size: int, n_channels: int, limit_s: float) -> Figures:
    """Measure PyLops' LSQR, whose own tests for an end are switched off."""
    from pylops.optimization.basic import lsqr

    kernel, x, y = _problem(size, n_channels)
    operator = _pylops_operator(kernel, x, y)

    def solve(n_iterations: int) -> Tensor:
        outcome = lsqr(
            operator,
            y.numpy().ravel(),
            x0=np.zeros(x.numel()),
            niter=n_iterations,
            atol=0,
            btol=0,
            conlim=0,
            calc_var=False,
        )
        return torch.from_numpy(outcome[0]).reshape(x.shape)

    return _least_time(solve, x, limit_s)


def pylops_cgls(size: int, n_channels: int, limit_s: float) -> Figures:
    """Measure PyLops' CGLS."""
    from pylops.optimization.basic import cgls

    kernel, x, y = _problem(size, n_channels)
    operator = _pylops_operator(kernel, x, y)

    def solve(n_iterations: int) -> Tensor:
        outcome = cgls(operator, y.numpy().ravel(), x0=np.zeros(x.numel()), niter=n_iterations, tol=0)
        return torch.from_numpy(outcome[0]).reshape(x.shape)

    return _least_time(solve, x, limit_s)


def deepinv_lsqr(size: int, n_channels: int, limit_s: float) -> Figures:
    """Measure deepinv's `A_dagger` with LSQR; without `implicit_backward_solver`, which would add a penalty."""
    from deepinv.physics import LinearPhysics

    kernel, x, y = _problem(size, n_channels)
    physics = LinearPhysics(
        A=lambda image, **_: functional.conv2d(image, kernel, padding=1),
        A_adjoint=lambda output, **_: functional.conv_transpose2d(output, kernel, padding=1),
        implicit_backward_solver=False,
    )

    def solve(n_iterations: int) -> Tensor:
        with torch.no_grad():
            return physics.A_dagger(y[None], solver="lsqr", max_iter=n_iterations, tol=0.0, conlim=float("inf"))[0]

    return _least_time(solve, x, limit_s)


def report(outcomes: dict[str, Figures]) -> Report:
    """Compare."""
    ours = number(outcomes[OURS], "seconds")
    peers = [figures for name, figures in outcomes.items() if name != OURS and "failed" not in figures]
    # A package that never gets there counts with all of the time that it was given.
    best = min(peers, key=lambda figures: number(figures, "charged_s") or 0, default=None)
    is_bound = best is not None and best["is_reached"] == "no"
    targets = [
        Target(
            f"time to error {GOAL:g}, against the best of the others",
            20,
            (number(best, "charged_s") or 0) / ours if best is not None and ours else None,
            True,
            " ×",
            " or more: none gets there in the time it was given" if is_bound else "",
        )
    ]

    def against(figures: Figures) -> str:
        charged, sign = number(figures, "charged_s"), "> " if figures.get("is_reached") == "no" else ""
        return "–" if charged is None or not ours else f"{sign}{charged / ours:.3g} ×"

    rows = table(
        f"`y = F.conv2d(x, K, padding=1)`, 32 → 32 channels, 3 × 3 random taps, 128 × 128 white features, float64, no "
        f"noise, λ = 0: the time of the shortest run that ends with a relative error of at most {GOAL:g}, or, where "
        "none does, of the longest one in the time given.",
        "package, operator, solver",
        outcomes,
        [
            column("time", "seconds", seconds),
            ("against deconv", against),
            column("error", "error", small),
            column("iterations", "n_iterations", count),
            column("a further image", "further_s", seconds),
            column("peak memory", "peak_bytes", memory),
        ],
    )
    return Report("Against SigPy, PyLops and deepinv, on zero-padded data", targets, [rows])


def _least_time(solve: Solve, truth: Tensor, limit_s: float) -> Figures:
    """Find the shortest run that reaches the goal, to within a tenth, among those that end in the time given.

    Each run starts from zero, as a user would run it, so that no time goes into watching the iteration.
    """
    n_failed, n_iterations = 0, 1
    with peak_memory() as peak:
        taken_s, error = _attempt(solve, n_iterations, truth)
        while error > GOAL:
            n_failed = n_iterations
            n_iterations = min(4 * n_failed, int(limit_s * n_failed / taken_s))
            if n_iterations <= n_failed:
                n_iterations = n_failed
                break
            taken_s, error = _attempt(solve, n_iterations, truth)
        while error <= GOAL and n_iterations > max(1.1 * n_failed, n_failed + 1):
            middle = max(round((n_failed * n_iterations) ** 0.5), n_failed + 1)
            shorter_s, shorter_error = _attempt(solve, middle, truth)
            if shorter_error > GOAL:
                n_failed = middle
            else:
                n_iterations, taken_s, error = middle, shorter_s, shorter_error
    is_reached = error <= GOAL
    return {
        "seconds": taken_s,
        "further_s": taken_s,
        "charged_s": taken_s if is_reached else limit_s,
        "is_reached": "yes" if is_reached else "no",
        "error": error,
        "n_iterations": n_iterations,
        "peak_bytes": peak.n_bytes,
    }


def _attempt(solve: Solve, n_iterations: int, truth: Tensor) -> tuple[float, float]:
    """Give the time and the relative error of one run."""
    started = time.perf_counter()
    estimate = solve(n_iterations)
    return time.perf_counter() - started, problems.relative_error(estimate, truth)


def _problem(size: int, n_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    kernel, x = problems.random_kernel(n_channels), problems.features(n_channels, size)
    return kernel, x, _forward(x, kernel)


def _forward(image: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv2d(image[None], kernel, padding=1)[0]


def _adjoint(output: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv_transpose2d(output[None], kernel, padding=1)[0]


def _sigpy_solver(operator: object, y: Tensor) -> Solve:
    import sigpy

    def solve(n_iterations: int) -> Tensor:
        app = sigpy.app.LinearLeastSquares(operator, y.numpy(), max_iter=n_iterations, show_pbar=False)
        return torch.from_numpy(app.run())

    return solve


def _pylops_operator(kernel: Tensor, x: Tensor, y: Tensor) -> object:
    import pylops

    return pylops.FunctionOperator(
        lambda v: _forward(torch.from_numpy(v).reshape(x.shape), kernel).numpy().ravel(),
        lambda v: _adjoint(torch.from_numpy(v).reshape(y.shape), kernel).numpy().ravel(),
        y.numel(),
        x.numel(),
        dtype="float64",
    )
