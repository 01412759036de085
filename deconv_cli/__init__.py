"""Undo a convolution with its real borders, and report how far to trust the result.

The library in a few names::

    y = deconv_cli.forward(x, kernel, padding="same", boundary="zero")
    reconstruction = deconv_cli.invert(y, kernel, padding="same", boundary="zero", lam=1e-6)
    P = deconv_cli.pseudo_inverse(kernel, input_size=(128, 128), padding="same", boundary="zero")
    x_hat = P(y)

A module, and torch with it, is imported with the first use of one of its names, not with the package.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from deconv_cli import errors as errors

if TYPE_CHECKING:
    from deconv_cli.allocator import keep_freed_memory as keep_freed_memory
    from deconv_cli.blocks.block_extras import ExtraFiles as ExtraFiles
    from deconv_cli.blocks.block_plan import BlockOptions as BlockOptions
    from deconv_cli.blocks.block_task import BlockReconstruction as BlockReconstruction
    from deconv_cli.blocks.invert_blocks import LargeFileOptions as LargeFileOptions
    from deconv_cli.blocks.invert_blocks import invert_blocks as invert_blocks
    from deconv_cli.chains.chain_inversion import ChainInversion as ChainInversion
    from deconv_cli.chains.chain_inversion import invert_chain as invert_chain
    from deconv_cli.errors import DeconvError as DeconvError
    from deconv_cli.errors import FileAccessError as FileAccessError
    from deconv_cli.errors import GradientFaultError as GradientFaultError
    from deconv_cli.errors import InputRefusedError as InputRefusedError
    from deconv_cli.errors import MalformedInputError as MalformedInputError
    from deconv_cli.errors import ShapeError as ShapeError
    from deconv_cli.errors import TooLargeError as TooLargeError
    from deconv_cli.errors import UnsafeInputError as UnsafeInputError
    from deconv_cli.errors import UntrustworthyResultError as UntrustworthyResultError
    from deconv_cli.errors import UsageError as UsageError
    from deconv_cli.errors import WorkerError as WorkerError
    from deconv_cli.gradients.checker import check_gradients as check_gradients
    from deconv_cli.gradients.findings import Cause as Cause
    from deconv_cli.gradients.findings import Finding as Finding
    from deconv_cli.gradients.findings import GradientReport as GradientReport
    from deconv_cli.gradients.findings import Verdict as Verdict
    from deconv_cli.gradients.rules import GRADIENT_RULES as GRADIENT_RULES
    from deconv_cli.gradients.training.script import watch_gradients as watch_gradients
    from deconv_cli.kernels.bead_psf import BeadPsf as BeadPsf
    from deconv_cli.kernels.bead_psf import psf_from_beads as psf_from_beads
    from deconv_cli.kernels.blind.blur_map import map_blur as map_blur
    from deconv_cli.kernels.blind.blurred_picture import align_kernel as align_kernel
    from deconv_cli.kernels.blind.blurred_picture import estimate_free_kernel as estimate_free_kernel
    from deconv_cli.kernels.blind.blurred_picture import estimate_kernel as estimate_kernel
    from deconv_cli.kernels.fit_kernel import KernelFit as KernelFit
    from deconv_cli.kernels.fit_kernel import fit_kernel as fit_kernel
    from deconv_cli.kernels.kernel import Kernel as Kernel
    from deconv_cli.kernels.kernel_field import KernelField as KernelField
    from deconv_cli.kernels.microscope import Microscope as Microscope
    from deconv_cli.kernels.microscope import microscope_psf as microscope_psf
    from deconv_cli.kernels.receptive_field import ReceptiveFieldConv2d as ReceptiveFieldConv2d
    from deconv_cli.kernels.sources.formula import make_kernel as make_kernel
    from deconv_cli.operators.convolution import Convolution as Convolution
    from deconv_cli.operators.differences import Gradient as Gradient
    from deconv_cli.operators.differences import Laplacian as Laplacian
    from deconv_cli.operators.linear_operator import Identity as Identity
    from deconv_cli.operators.linear_operator import Linearization as Linearization
    from deconv_cli.operators.linear_operator import LinearOperator as LinearOperator
    from deconv_cli.operators.varying_convolution import VaryingConvolution as VaryingConvolution
    from deconv_cli.parts import BOUNDARIES as BOUNDARIES
    from deconv_cli.parts import CODECS as CODECS
    from deconv_cli.parts import KERNEL_SOURCES as KERNEL_SOURCES
    from deconv_cli.parts import LOSSES as LOSSES
    from deconv_cli.parts import PENALTIES as PENALTIES
    from deconv_cli.parts import PRIORS as PRIORS
    from deconv_cli.parts import SCHEDULERS as SCHEDULERS
    from deconv_cli.parts import SOLVERS as SOLVERS
    from deconv_cli.parts import TAPS as TAPS
    from deconv_cli.parts import Registry as Registry
    from deconv_cli.saved_files import ModelLayer as ModelLayer
    from deconv_cli.saved_files import list_layers as list_layers
    from deconv_cli.saved_files import load_kernel_field as load_kernel_field
    from deconv_cli.saved_files import load_layer as load_layer
    from deconv_cli.saved_files import save_kernel_field as save_kernel_field
    from deconv_cli.saved_files import save_layer as save_layer
    from deconv_cli.settings import ReconstructionSettings as ReconstructionSettings
    from deconv_cli.settings import ResolvedSettings as ResolvedSettings
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse as PseudoInverse
    from deconv_cli.solvers.solution import Solution as Solution
    from deconv_cli.solvers.solution import Status as Status
    from deconv_cli.solvers.solve import solve as solve
    from deconv_cli.tone_curve import ToneCurve as ToneCurve
    from deconv_cli.workflows.apply_kernel import forward as forward
    from deconv_cli.workflows.apply_kernel import forward_taps as forward_taps
    from deconv_cli.workflows.library import invert as invert
    from deconv_cli.workflows.library import pseudo_inverse as pseudo_inverse
    from deconv_cli.workflows.progress_listener import ProgressListener as ProgressListener
    from deconv_cli.workflows.reconstruction import Reconstruction as Reconstruction
    from deconv_cli.workflows.resolve_settings import InputMetadata as InputMetadata

__version__ = "0.2.0"

_HOMES = {
    name.name: str(statement.module)
    for statement in ast.walk(ast.parse(pkgutil.get_data(__name__, "__init__.py") or b""))
    if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("deconv_cli.")
    for name in statement.names
}
"""The module of each name above."""

__all__ = sorted({"__version__", *_HOMES})


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'deconv_cli' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
