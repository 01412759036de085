"""The common problem of all blocks of a picture: how the pipeline restores a part, and the memory that this takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import psutil
import torch
from torch import Tensor

from deconv_cli.blocks.block_grid import AxisCut, Interval
from deconv_cli.io.layout import Layout, as_real_tensor, check_finite
from deconv_cli.io.region_arrays import RegionSource
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.geometry import Geometry, resolve_padding
from deconv_cli.parts import BOUNDARIES, PRIORS
from deconv_cli.regularizers import find_penalty, spaced_penalty
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.estimator import Estimator
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.solver import Cost, choose_method, find_solver
from deconv_cli.tone_curve import WHITES
from deconv_cli.vocabulary import Size, format_memory
from deconv_cli.workflows.arithmetic import pick_dtype
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolve_settings import ResolvedInput


@dataclass(frozen=True, eq=False)
class BlockProblem:
    """A large picture, its kernel and its settings as given and as resolved; can be sent to other processes.

    The kernel is as `deconv_cli.invert` takes it. The bias, shape `(C_out,)`, is subtracted from each channel first.
    """

    source: RegionSource
    layout: Layout
    kernel: Tensor
    settings: ReconstructionSettings
    resolution: ResolvedInput
    bias: Tensor | None = None
    device: str = "cpu"

    @property
    def resolved(self) -> ResolvedSettings:
        """The resolved settings."""
        return self.resolution.settings

    def with_settings(self, **changes: Any) -> BlockProblem:  # noqa: ANN401
        """Change resolved settings."""
        return replace(self, resolution=replace(self.resolution, settings=replace(self.resolved, **changes)))

    @property
    def canonical(self) -> Kernel:
        """The kernel in canonical form."""
        return Kernel.of_any(self.kernel, dimensions=self.layout.dimensions)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the arithmetic."""
        stored = torch.float64 if self.source.dtype == "float64" else torch.float32
        return pick_dtype(self.settings.dtype, torch.empty(0, dtype=stored), torch.device(self.device))

    @property
    def n_channels(self) -> int:
        """Channels of the estimate."""
        n_data = self.layout.n_channels
        return n_data if self.resolution.is_per_channel else self.canonical.n_inputs(n_data)

    @property
    def data_size(self) -> Size:
        """Samples of one image along the axes of space."""
        return tuple(self.layout.sizes[self.layout.axes.index(letter)] for letter in self.layout.space)

    @property
    def cuts(self) -> tuple[AxisCut, ...]:
        """How each axis of space is cut."""
        size = self.canonical.size
        pads = resolve_padding(self.resolved.padding, size)
        axes = zip(self.data_size, size, pads.before, pads.after, strict=True)
        return tuple(AxisCut(n, k, (before, after)) for n, k, before, after in axes)

    @property
    def white(self) -> float | None:
        """The stored value of a saturated sample; `None` if the sample type has none."""
        return WHITES.get(self.source.dtype)

    @property
    def image_size(self) -> Size:
        """Pixels of the whole estimate along the axes of space."""
        return tuple(cut.n_image for cut in self.cuts)

    def read(self, batch: Sequence[slice], data: Sequence[Interval]) -> Tensor:
        """Read a part of the data, shape `(B, C_out, *size)`; `batch` is for axes that are neither space nor channels.

        Raises:
            MalformedInputError: the file is damaged there, or holds NaN or Inf.
        """
        region = self.layout.region(batch, [slice(*interval) for interval in data])
        values = as_real_tensor(self.source.path, self.source.read(region))
        check_finite(self.source.path, values, "image")
        return replace(self.layout, sizes=tuple(values.shape)).to_images(values).to(self.device)

    def restore(
        self,
        values: Tensor,
        data: Sequence[Interval],
        pipeline: Pipeline,
        progress: ProgressListener | None = None,
        *,
        is_tested: bool = False,
        core: Sequence[Interval] | None = None,
    ) -> Reconstruction:
        """Restore a part of the data; `AxisCut.image_of` says which image pixels the estimate has.

        Testing the residual too doubles the time and takes several times the memory. It is measured at the image pixels
        of the `core` alone if that is given.
        """
        resolution = replace(self.resolution_of(data), is_tested=is_tested)
        if core is not None:
            resolution = replace(resolution, measured=self.box_of(core, data))
        if not is_tested:
            values, resolution = self._closed(values, data, resolution)
        return pipeline.reconstruct(values, resolution, progress=progress)

    def box_of(self, core: Sequence[Interval], data: Sequence[Interval]) -> tuple[Size, Size]:
        """Give start and size, within a part of the data, of the samples at the image pixels of the `core`."""
        ends = [
            [min(max(at + cut.shift - start, 0), stop - start) for at in interval]
            for cut, (start, stop), interval in zip(self.cuts, data, core, strict=True)
        ]
        return tuple(first for first, _ in ends), tuple(last - first for first, last in ends)

    def _closed(
        self, values: Tensor, data: Sequence[Interval], resolution: ResolvedInput
    ) -> tuple[Tensor, ResolvedInput]:
        """Put data on a torus along the axes whose both ends are cuts.

        The influence of what lies outside ends in the halo, whatever it is, and on a torus the estimate has a closed
        form. The gap is filled smoothly and is as wide as the kernel reaches, so the image keeps its size. Beside the
        frame a penalty on differences has no closed form, and a torus would keep it from the fastest solvers.
        """
        settings = resolution.settings
        wraps = tuple(cut.is_closed(interval) for cut, interval in zip(self.cuts, data, strict=True))
        is_faster = all(wraps) or not find_penalty(settings.penalty).takes_differences
        if not (any(wraps) and is_faster and settings.is_linear and settings.method == "auto"):
            return values, resolution
        reach = [cut.n_taps - 1 if is_wrapped else 0 for cut, is_wrapped in zip(self.cuts, wraps, strict=True)]
        torus = tuple(n + r for n, r in zip(values.shape[-len(reach) :], reach, strict=True))
        closed = close_smoothly(values if values.is_floating_point() else values.double(), torus)
        closed = closed if values.is_floating_point() else closed.round_().to(values.dtype)
        ends = zip(self.cuts, data, reach, wraps, strict=True)
        padding = tuple((0, r) if is_wrapped else cut.pads_of(interval) for cut, interval, r, is_wrapped in ends)
        return closed, replace(resolution, settings=replace(settings, padding=padding, wraps=wraps))

    def resolution_of(self, data: Sequence[Interval]) -> ResolvedInput:
        """Resolve the settings for a part of the data."""
        ends = list(zip(self.cuts, data, strict=True))
        pads = tuple(cut.pads_of(interval) for cut, interval in ends)
        boundary = self.resolved.boundary
        is_unknown = BOUNDARIES[boundary].is_unknown  # then an estimate begins outside the frame
        origin = tuple(interval[0] if is_unknown else cut.image_of(interval)[0] for cut, interval in ends)
        if not any(sum(sides) for sides in pads):
            boundary = "unknown"  # no side of the data lies at the frame
        settings = replace(self.resolved, padding=pads, input_size=None, origin=origin, boundary=boundary)
        return replace(self.resolution, settings=settings)

    def find_bounds(self, values: Tensor, data: Sequence[Interval], pipeline: Pipeline) -> Tensor | None:
        """Find pixels whose own sample is saturated in any image or channel, and so only a lower bound.

        Returns:
            A mask of the size of the image that is restored from these data; `None` if no sample is saturated.
        """
        found = pipeline.find_bounds(values, self.resolution_of(data))
        if found is None:
            return None
        mask = found.flatten(0, -len(data) - 1).any(0)
        for axis, (cut, (start, stop)) in enumerate(zip(self.cuts, data, strict=True)):
            place = torch.arange(*cut.image_of((start, stop)), device=mask.device) + cut.shift - start
            mask = mask.index_select(axis, place.clamp(0, stop - start - 1))
        return mask

    def predict(
        self, values: Tensor, data: Sequence[Interval], pipeline: Pipeline, number: int, n_pieces: int
    ) -> Reconstruction:
        """Restore part `number` of `n_pieces`, and predict its error as if it had the frame of the whole.

        Each part draws other random numbers.
        """
        alone = self.resolution_of(data)
        settings = replace(alone.settings, predict=True, seed=(self.resolved.seed or 0) + 2 * number)
        frame = self.resolved.boundary, self.resolved.padding
        return pipeline.reconstruct(values, replace(alone, settings=settings, frame=frame, n_pieces=n_pieces))

    def crop(self, image: Tensor, data: Sequence[Interval], core: Sequence[Interval]) -> Tensor:
        """Crop an estimate that was restored from a part of the data to some image pixels."""
        axes = space_axes(len(core))
        for axis, cut, read, (start, stop) in zip(axes, self.cuts, data, core, strict=True):
            image = image.narrow(axis, start - cut.image_of(read)[0], stop - start)
        return image.contiguous()

    def pipeline(self) -> Pipeline:
        """Make a pipeline. It keeps the inverse of the last part for the next part of the same size."""
        own = replace(self.settings, dimensions=self.layout.dimensions)
        return Pipeline(self.kernel, own, bias=self.bias)


def limit_threads(n_threads: int) -> None:
    """Set the number of torch's threads: another number rounds sums in another order."""
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)


def count_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


N_COPIES = 4
"""Arrays of the size of the data for reading, cropping and writing a block, beside the solver's."""
N_COPIES_TESTED = 28
"""The same if the residual is tested: noise and residual are transformed in double precision."""
N_COPIES_OF_BOUNDS = {1: 32, 2: 32, 3: 72}
"""Further arrays of an iteration with saturated samples as bounds, most in double precision, by the axes of space."""
SHARE = 0.9
"""The part of the allowed memory that a plan uses. Blocks of 1000² and 80 × 120² took 0.5 to 0.86 of the estimate."""
FREE_SHARE = 0.5
"""Part of the free memory that blocks take by default."""
MAX_BYTES_A_SAMPLE = 2**10
"""No solver takes more, so a small picture is recognized without asking any."""


def default_memory() -> int:
    """Return the bytes that blocks take by default."""
    return int(FREE_SHARE * psutil.virtual_memory().available)


def block_bytes(problem: BlockProblem, data_size: Size, n_batch: int = 1, *, is_tested: bool = False) -> int:
    """Estimate the peak of memory of restoring a part of the data, of `n_batch` images together.

    The residual is tested too for preview tiles and for a whole picture.
    """
    kernel = Kernel.of_any(problem.kernel, problem.dtype, dimensions=problem.layout.dimensions)
    n_channels = max(problem.layout.n_channels, problem.n_channels)
    bytes_of_channel = problem.dtype.itemsize * n_batch * prod(data_size)
    copies = (N_COPIES_TESTED if is_tested else N_COPIES) * n_channels * bytes_of_channel
    n_bounded = N_COPIES_OF_BOUNDS[len(data_size)] if problem.resolution.has_bounds else 0
    if problem.resolution.is_per_channel or problem.resolution.lams:
        one = kernel.of_channel(0) if kernel.is_per_channel else kernel
        cost = _cost(one, data_size, problem.resolved)
        one_by_one = (n_channels - 1) * cost.n_bytes_built + cost.n_bytes(n_batch)
        return copies + one_by_one + n_bounded * bytes_of_channel
    n_images = n_batch * (problem.layout.n_channels if kernel.shared else 1)
    copies += n_bounded * n_channels * bytes_of_channel
    return copies + _cost(kernel, data_size, problem.resolved).n_bytes(n_images)


def _cost(kernel: Kernel, data_size: Size, settings: ResolvedSettings) -> Cost:
    """Estimate the cost of the solver for a block whose sides are all cuts."""
    geometry = Geometry.of_output(data_size, kernel.size, "valid")
    if settings.has_lambda:
        operator = kernel.detached().convolution(geometry, "unknown")
        penalty = spaced_penalty(settings.penalty, settings.spacing)
        problem = TikhonovProblem(operator, settings.lam, penalty=penalty)
        return find_solver(choose_method(problem, settings.method, settings.max_memory).method).cost(problem)
    cut = replace(settings, padding="valid", boundary="unknown", max_memory=2**62)
    estimator: Estimator = PRIORS[settings.objective].build(kernel, geometry.image_size, cut, 1.0)
    return estimator.cost


def largest_samples(problem: BlockProblem, budget: int, n_batch: int = 1, *, is_tested: bool = False) -> int:
    """Find how many samples of data fit a budget in bytes, in a part of nearly equal sides."""
    size = problem.data_size
    probe = tuple(min(n, 2 ** (18 // len(size))) for n in size)
    per_sample = block_bytes(problem, probe, n_batch, is_tested=is_tested) / prod(probe)
    return int(SHARE * budget / per_sample)


def is_small(shape: Size, budget: int) -> bool:
    """Return whether an input of this stored shape certainly fits the memory."""
    return MAX_BYTES_A_SAMPLE * prod(shape) <= budget


def _bytes_of_whole(problem: BlockProblem) -> float:
    return block_bytes(problem, problem.data_size, problem.layout.n_batch, is_tested=True) / SHARE


def whole_fits(problem: BlockProblem, budget: int) -> bool:
    """Return whether the whole picture fits the memory that its restoration may take."""
    return is_small(problem.source.shape, budget) or _bytes_of_whole(problem) <= budget


def advise_whole(problem: BlockProblem, max_memory: int, block_size: Size | None = None) -> str:
    """Advise to restore a picture as a whole, and name the options that have to change."""
    n_bytes = 1.01 * _bytes_of_whole(problem)  # rounded when printed
    needs = [] if block_size is None else ["without block_size"]
    if n_bytes > max_memory:
        needs.append(f"with a max_memory of {format_memory(n_bytes)}")
    return "restore it as a whole" + (", " + " and ".join(needs) if needs else "")
