"""What all blocks of one picture share, and how any part of it is restored by the one pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from deconv_cli.blocks.axis_cut import AxisCut, Interval
from deconv_cli.io.codec import Array
from deconv_cli.io.layout import Layout
from deconv_cli.io.regions import RegionSource
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.extension import close_smoothly
from deconv_cli.operators.geometry import resolve_padding
from deconv_cli.parts import BOUNDARIES
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.tone_curve import WHITES
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.progress_listener import ProgressListener
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolution import Resolution


@dataclass(frozen=True, eq=False)
class BlockProblem:
    """A large picture, a kernel, and how it is undone; can be sent to other processes.

    Attributes:
        source: the picture.
        layout: its axes, of which those of space are the kernel's.
        kernel: the taps as `deconv_cli.invert` takes them.
        settings: what was chosen.
        resolution: the same with nothing left open.
        bias: subtracted from each output channel first, shape `(C_out,)`.
        device: where the arithmetic runs.
    """

    source: RegionSource
    layout: Layout
    kernel: Tensor
    settings: ReconstructionSettings
    resolution: Resolution
    bias: Tensor | None = None
    device: str = "cpu"

    @property
    def canonical(self) -> Kernel:
        """The kernel in canonical form."""
        return Kernel.of_any(self.kernel, dimensions=self.layout.dimensions)

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
        settings, size = self.resolution.settings, self.canonical.size
        pads = resolve_padding(settings.padding, size)
        wraps = BOUNDARIES[settings.boundary].is_periodic
        axes = zip(self.data_size, size, pads.before, pads.after, strict=True)
        return tuple(AxisCut(n, k, (before, after), wraps) for n, k, before, after in axes)

    @property
    def white(self) -> float | None:
        """The stored value of a full sample; `None` where samples have no such value."""
        return WHITES.get(self.source.dtype)

    @property
    def image_size(self) -> Size:
        """Pixels of the whole estimate along the axes of space."""
        return tuple(cut.n_image for cut in self.cuts)

    def read(self, batch: Sequence[slice], data: Sequence[Interval]) -> Tensor:
        """Read a part of the data, shape `(B, C_out, *size)`.

        Args:
            batch: for each axis that is neither space nor channels.
            data: for each axis of space.

        Raises:
            MalformedInputError: the file is damaged there, or holds NaN or Inf.
        """
        runs = [cut.runs(interval) for cut, interval in zip(self.cuts, data, strict=True)]
        stored = as_real_tensor(self.source.path, self._read(batch, runs))
        check_finite(self.source.path, stored, "image")
        return replace(self.layout, sizes=tuple(stored.shape)).to_images(stored).to(self.device)

    def _read(self, batch: Sequence[slice], runs: Sequence[Sequence[slice]]) -> Array:
        """Read runs along each axis of space, and put them side by side."""
        for axis, several in enumerate(runs):
            if len(several) > 1:
                parts = [self._read(batch, [*runs[:axis], [one], *runs[axis + 1 :]]) for one in several]
                joined: Array = np.concatenate(parts, axis=self.layout.axes.index(self.layout.space[axis]))
                return joined
        return self.source.read(self.layout.region(batch, [run for (run,) in runs]))

    def restore(
        self,
        values: Tensor,
        data: Sequence[Interval],
        pipeline: Pipeline,
        progress: ProgressListener | None = None,
        *,
        is_tested: bool = False,
    ) -> Reconstruction:
        """Restore a part of the data, as `read` gives it; the image is that of `AxisCut.image_of`.

        Args:
            values: the data.
            data: what they are.
            pipeline: restores.
            progress: follows it.
            is_tested: whether the residual is tested too, which takes as long as restoring, and several times the
                memory.
        """
        resolution = replace(self.resolution_of(data), is_tested=is_tested)
        if not is_tested:
            values, resolution = self._closed(values, data, resolution)
        return pipeline.reconstruct(values, resolution, progress=progress)

    def _closed(self, values: Tensor, data: Sequence[Interval], resolution: Resolution) -> tuple[Tensor, Resolution]:
        """Let data go around a torus along axes that they are cut along at both ends.

        Whatever is taken to lie there, its influence ends in the halo, and on a torus the estimate is in closed form.
        The gap is filled smoothly, and is as wide as the kernel reaches: the image is as large as without.
        """
        settings = resolution.settings
        wraps = tuple(cut.is_closed(interval) for cut, interval in zip(self.cuts, data, strict=True))
        if not (any(wraps) and settings.is_linear and settings.method == "auto"):
            return values, resolution
        reach = [cut.n_taps - 1 if is_wrapped else 0 for cut, is_wrapped in zip(self.cuts, wraps, strict=True)]
        torus = tuple(n + r for n, r in zip(values.shape[-len(reach) :], reach, strict=True))
        closed = close_smoothly(values if values.is_floating_point() else values.double(), torus)
        closed = closed if values.is_floating_point() else closed.round_().to(values.dtype)
        ends = zip(self.cuts, data, reach, wraps, strict=True)
        padding = tuple((0, r) if is_wrapped else cut.pads_of(interval) for cut, interval, r, is_wrapped in ends)
        return closed, replace(resolution, settings=replace(settings, padding=padding, wraps=wraps))

    def resolution_of(self, data: Sequence[Interval]) -> Resolution:
        """Settle how a part of the data is restored."""
        pads = tuple(cut.pads_of(interval) for cut, interval in zip(self.cuts, data, strict=True))
        settings = replace(self.resolution.settings, padding=pads, input_size=None)
        is_unknown = BOUNDARIES[settings.boundary].is_unknown  # then an estimate begins outside the frame
        origin = tuple(
            start if is_unknown else cut.image_of((start, stop))[0]
            for cut, (start, stop) in zip(self.cuts, data, strict=True)
        )
        settings = replace(settings, origin=origin)
        if not any(sum(sides) for sides in pads):
            settings = replace(settings, boundary="unknown")  # where nothing lies at the frame no rule is asked
        return replace(self.resolution, settings=settings)

    def find_bounds(self, values: Tensor, data: Sequence[Interval], pipeline: Pipeline) -> Tensor | None:
        """Find pixels whose own sample is full, and no more than a bound, in any image or channel.

        Args:
            values: as `read` gives them.
            data: what they are.
            pipeline: restores them.

        Returns:
            A mask of the size of the image that is restored from them; `None` where there are none.
        """
        found = pipeline.find_bounds(values, self.resolution_of(data))
        if found is None:
            return None
        mask = found.flatten(0, -len(data) - 1).any(0)
        for axis, (cut, (start, stop)) in enumerate(zip(self.cuts, data, strict=True)):
            place = torch.arange(*cut.image_of((start, stop)), device=mask.device) + cut.shift - start
            mask = mask.index_select(axis, place.clamp(0, stop - start - 1))
        return mask

    def examine(
        self, values: Tensor, data: Sequence[Interval], pipeline: Pipeline, number: int, n_pieces: int
    ) -> Reconstruction:
        """Restore a part of the data, and predict its error as if it had the frame of the whole.

        Args:
            values: as `read` gives them.
            data: what they are.
            pipeline: restores.
            number: which part it is: other random numbers are drawn for each.
            n_pieces: parts that are looked at.
        """
        whole, alone = self.resolution.settings, self.resolution_of(data)
        settings = replace(alone.settings, predict=True, seed=(whole.seed or 0) + 2 * number)
        frame = whole.boundary, whole.padding
        resolution = replace(alone, settings=settings, frame=frame, n_pieces=n_pieces)
        return pipeline.reconstruct(values, resolution)

    def crop(self, image: Tensor, data: Sequence[Interval], core: Sequence[Interval]) -> Tensor:
        """Cut image pixels out of what was restored from a part of the data."""
        axes = space_axes(len(core))
        for axis, cut, read, (start, stop) in zip(axes, self.cuts, data, core, strict=True):
            image = image.narrow(axis, start - cut.image_of(read)[0], stop - start)
        return image.contiguous()

    def pipeline(self) -> Pipeline:
        """Make a pipeline, which keeps the inverse of the last part for the next one of the same size."""
        own = replace(self.settings, dimensions=self.layout.dimensions)
        return Pipeline(self.kernel, own, bias=self.bias)


def limit_threads(n_threads: int) -> None:
    """Take so many threads for the arithmetic: other numbers of them round sums in another order."""
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)
