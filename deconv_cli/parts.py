"""All parts that can be added, one line each; adding one takes its own file and a line here.

Nothing here imports torch: the command line offers these names before torch is loaded. A caller adds a part of his own
by `register`, as in `deconv_cli.BOUNDARIES.register("antisymmetric", Antisymmetric())`; docs/extending.md has examples.
"""

from __future__ import annotations

from typing import Any

from deconv_cli.registry import Registry

BOUNDARIES: Registry[Any] = Registry(
    "boundary",
    {
        "zero": "deconv_cli.operators.boundary_rules:ZERO",
        "circular": "deconv_cli.operators.boundary_rules:CIRCULAR",
        "reflect": "deconv_cli.operators.boundary_rules:REFLECT",
        "symmetric": "deconv_cli.operators.boundary_rules:SYMMETRIC",
        "replicate": "deconv_cli.operators.boundary_rules:REPLICATE",
        "unknown": "deconv_cli.operators.boundary_rules:UNKNOWN",
    },
)
"""What lies outside the image."""

PENALTIES: Registry[Any] = Registry(
    "penalty",
    {
        "identity": "deconv_cli.regularizers:IDENTITY",
        "gradient": "deconv_cli.regularizers:GRADIENT",
        "laplacian": "deconv_cli.regularizers:LAPLACIAN",
    },
)
"""The operator L in λ·σ²max·‖Lx‖²."""

SOLVERS: Registry[Any] = Registry(
    "method",
    {
        "fft": "deconv_cli.solvers.closed_form:CIRCULAR",
        "strip": "deconv_cli.solvers.strip:STRIP",
        "slab": "deconv_cli.solvers.slab:SLAB",
        "direct": "deconv_cli.solvers.direct:DIRECT",
        "phases": "deconv_cli.solvers.rearranged:PHASES",
        "dense": "deconv_cli.solvers.closed_form:DENSE",
        "varying": "deconv_cli.solvers.varying:VARYING",
        "iterative": "deconv_cli.solvers.iterative:ITERATIVE",
    },
)
"""How a quadratic problem is solved."""

PRIORS: Registry[Any] = Registry(
    "prior",
    {
        "nonnegative": "deconv_cli.solvers.nonnegative:NONNEGATIVE",
        "tv": "deconv_cli.solvers.total_variation:TOTAL_VARIATION",
        "richardson-lucy": "deconv_cli.solvers.richardson_lucy:RICHARDSON_LUCY",
        "photo": "deconv_cli.saved_denoiser:PHOTO_PRIOR",
    },
)
"""Objectives other than a quadratic one, each with the solver that minimizes it."""
OWN_SETTINGS = {"nonnegative": "nonnegative=True", "richardson-lucy": 'method="richardson-lucy"'}
"""Objectives that are no value of the setting `prior`, and the settings that ask for them."""

KERNEL_SOURCES: Registry[Any] = Registry(
    "kernel source",
    {
        "gaussian": "deconv_cli.kernels.sources.simple_blurs:GAUSSIAN",
        "disk": "deconv_cli.kernels.sources.simple_blurs:DISK",
        "box": "deconv_cli.kernels.sources.simple_blurs:BOX",
        "motion": "deconv_cli.kernels.sources.simple_blurs:MOTION",
        "polygon": "deconv_cli.kernels.sources.optical_blurs:POLYGON",
        "airy": "deconv_cli.kernels.sources.optical_blurs:AIRY",
        "moffat": "deconv_cli.kernels.sources.optical_blurs:MOFFAT",
        "disk-motion": "deconv_cli.kernels.sources.simple_blurs:DISK_MOTION",
        "gaussian3d": "deconv_cli.kernels.sources.simple_blurs:GAUSSIAN3D",
        "shift": "deconv_cli.kernels.sources.simple_blurs:SHIFT",
    },
)
"""Formulas for kernels: `name:NUMBER@NUMBER`."""

TAPS: Registry[Any] = Registry(
    "tap",
    {
        "product": "deconv_cli.kernels.receptive_field:multiply",
        "tan-sum": "deconv_cli.kernels.receptive_field:tangent_of_sum",
    },
)
"""Functions of a pixel and a weight that replace their product."""

LOSSES: Registry[Any] = Registry(
    "loss",
    {
        "squared": "deconv_cli.kernels.loss_fit:squared",
        "l1": "deconv_cli.kernels.loss_fit:l1",
        "huber": "deconv_cli.kernels.loss_fit:huber",
        "poisson": "deconv_cli.kernels.loss_fit:poisson",
    },
)
"""Functions that the fit of a kernel to pairs minimizes."""

CODECS: Registry[Any] = Registry(
    "file format",
    {
        "tiff": "deconv_cli.io.codecs.tiff:TIFF",
        "png": "deconv_cli.io.codecs.pictures:PNG",
        "jpeg": "deconv_cli.io.codecs.pictures:JPEG",
        "webp": "deconv_cli.io.codecs.pictures:WEBP",
        "avif": "deconv_cli.io.codecs.pictures:AVIF",
        "bmp": "deconv_cli.io.codecs.pictures:BMP",
        "gif": "deconv_cli.io.codecs.pictures:GIF",
        "torch": "deconv_cli.io.codecs.torch_file:TORCH",
        "safetensors": "deconv_cli.io.codecs.safetensors_file:SAFETENSORS",
        "npy": "deconv_cli.io.codecs.npy:NPY",
        "npz": "deconv_cli.io.codecs.npy:NPZ",
        "zarr": "deconv_cli.io.codecs.zarr_folder:ZARR",
        "fits": "deconv_cli.io.codecs.fits:FITS",
    },
)
"""File formats, for images and tensors."""

SCHEDULERS: Registry[Any] = Registry(
    "scheduler",
    {
        "serial": "deconv_cli.schedulers.local_workers:SerialScheduler",
        "threads": "deconv_cli.schedulers.local_workers:ThreadPool",
        "processes": "deconv_cli.schedulers.local_workers:ProcessPool",
        "dask": "deconv_cli.schedulers.dask_cluster:DaskCluster",
    },
)
"""Who does many independent pieces of work; the last that covers the settings."""


def method_names() -> tuple[str, ...]:
    """List the names of methods: `auto`, the solvers of quadratic problems, and `richardson-lucy`."""
    return ("auto", *SOLVERS, "richardson-lucy")


def prior_names() -> tuple[str, ...]:
    """List what a prior may be called; two objectives have settings of their own instead."""
    return ("quadratic", *(name for name in PRIORS if name not in OWN_SETTINGS))
