"""What is made of every block besides its estimate: the error to be expected, where to trust it, and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deconv_cli.blocks.axis_cut import Interval
from deconv_cli.blocks.block_grid import Block
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.sampled_error import ErrorSample
from deconv_cli.blocks.thumbnail import N_CHANNELS, Thumbnail, ThumbnailPart, choose_steps
from deconv_cli.diagnostics.predicted_error import DETAIL_REACH
from deconv_cli.diagnostics.residual import edge_distance
from deconv_cli.errors import UsageError
from deconv_cli.io.codec import Array, from_images
from deconv_cli.io.layout import Layout
from deconv_cli.io.records import samples_digest
from deconv_cli.io.regions import Region, RegionSource, RegionTarget
from deconv_cli.io.samples import as_real_tensor, check_finite
from deconv_cli.operators.axes import crop

TRUSTED = 255
"""Sample of a mask where the estimate is to be trusted; 0 elsewhere."""


@dataclass(frozen=True, eq=False)
class TrueImage:
    """The image that was to be found, of the axes and sizes of the result.

    Attributes:
        source: its file.
        layout: its axes.
    """

    source: RegionSource
    layout: Layout

    def check(self, result: Layout) -> TrueImage:
        """Refuse by `UsageError` a truth of other axes or sizes than the result."""
        if _shape(self.layout) != _shape(result):
            raise UsageError(
                f"the truth '{self.source.path}' of shape {self.source.shape} has axes {self.layout.axes}, but the "
                f"result of shape {result.sizes} has {result.axes}; in blocks both have to have the same axes."
            )
        return self

    def read(self, batch: Sequence[slice], core: Sequence[Interval]) -> Tensor:
        """Read a part, shape `(B, C, *size)`."""
        region = self.layout.region(batch, [slice(*interval) for interval in core])
        stored = as_real_tensor(self.source.path, self.source.read(region))
        check_finite(self.source.path, stored, "image")
        return replace(self.layout, sizes=tuple(stored.shape)).to_images(stored)


def _shape(layout: Layout) -> tuple[object, ...]:
    along = [layout.sizes[layout.axes.index(letter)] for letter in layout.space]
    return [layout.sizes[axis] for axis in layout.batch_axes], layout.n_channels, along


@dataclass(frozen=True)
class ExtraNumbers:
    """What is known of a block besides.

    Attributes:
        squared_predicted: sum of the squared error that is to be expected; `None` where it is not predicted.
        trusted_share: part of its pixels that are trusted.
        squared_error: of the real one; `None` where no truth is known.
        thumbnails: its parts of them.
        digests: of what it wrote into each file.
    """

    squared_predicted: float | None = None
    trusted_share: float = 0.0
    squared_error: float | None = None
    thumbnails: tuple[ThumbnailPart, ...] = ()
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class BlockExtras:
    """What is asked for besides the estimate.

    Attributes:
        error_map: file of the error to be expected, root mean square.
        trust_mask: file that tells where to trust the estimate.
        truth: what the estimate is compared with.
        has_thumbnails: whether small pictures of the whole are made, for a page.
    """

    error_map: RegionTarget | None = None
    trust_mask: RegionTarget | None = None
    truth: TrueImage | None = None
    has_thumbnails: bool = False

    @property
    def targets(self) -> tuple[RegionTarget, ...]:
        """The files that are written."""
        return tuple(target for target in (self.error_map, self.trust_mask) if target is not None)

    def describe(self) -> list[object]:
        """Name all of it, so that a run is gone on with only if it is the same."""
        files = [[str(file.path), list(file.shape), file.axes, list(file.unit)] for file in self.targets]
        asked_for = [self.error_map is not None, self.trust_mask is not None, self.has_thumbnails]
        return [*files, *asked_for, self.truth and self.truth.source.fingerprint()]


NO_EXTRAS = BlockExtras()


@dataclass(frozen=True, eq=False)
class ExtraWork:
    """Does what is asked for to one block after another.

    Attributes:
        problem: what is restored.
        extras: what is asked for.
        error: what pieces tell of the error; `None` where it is not predicted.
    """

    problem: BlockProblem
    extras: BlockExtras
    error: ErrorSample | None

    def __call__(self, block: Block, values: Tensor, image: Tensor) -> ExtraNumbers:
        """Write and sum up what there is of a block.

        Args:
            block: which one.
            values: its data, shape `(B, C_out, *data)`.
            image: the estimate from them, shape `(B, C_in, *image)`.
        """
        settings, n_axes = self.problem.resolution.settings, len(block.core)
        curve = self.problem.resolution.tone_curve if settings.is_linear else None  # other errors are in stored values
        predicted: Tensor | None = None
        trusted_share, digests = 0.0, list[str]()
        if self.error is not None:
            acted_on = image if curve is None else curve.to_light(image, n_axes)
            predicted, is_outweighed = self._squared_prediction(block, acted_on)
            is_trusted = self._is_trusted(block, self.error.trusted_depth) & ~is_outweighed.cpu()
            trusted_share = float(is_trusted.double().mean())
            digests = self._write(block, predicted, is_trusted)
        core = self.problem.crop(image, block.data, block.core)
        error = None
        if self.extras.truth is not None:
            truth = self.extras.truth.read(block.batch, block.core).to(core)
            light = (core, truth) if curve is None else (curve.to_light(core, n_axes), curve.to_light(truth, n_axes))
            error = float((light[0] - light[1]).double().square().sum())
        return ExtraNumbers(
            squared_predicted=None if predicted is None else float(predicted.double().sum()),
            trusted_share=trusted_share,
            squared_error=error,
            thumbnails=self._thumbnails(block, values, core, predicted) if self.extras.has_thumbnails else (),
            digests=tuple(digests),
        )

    def _squared_prediction(self, block: Block, image: Tensor) -> tuple[Tensor, Tensor]:
        """Give the squared error to be expected of the pixels of a block, and where it exceeds the contrast."""
        assert self.error is not None
        reached, starts = [], []
        for cut, data, (start, stop) in zip(self.problem.cuts, block.data, block.core, strict=True):
            first, last = cut.image_of(data)
            # Not around a torus: detail is that within the frame.
            near = max(start - DETAIL_REACH, first, 0), min(stop + DETAIL_REACH, last, cut.n_image)
            reached.append(near)
            starts.append(start - near[0])
        around = self.problem.crop(image, block.data, reached)
        found = self.error.squared_error(around, reached, self.problem.image_size)
        is_outweighed = self.error.outweighs(around, found, len(block.core))
        size = tuple(stop - start for start, stop in block.core)
        return crop(found, tuple(starts), size), crop(is_outweighed, tuple(starts), size)

    def _write(self, block: Block, predicted: Tensor, is_trusted: Tensor) -> list[str]:
        digests = []
        if self.extras.error_map is not None:
            digests.append(write_block(self.extras.error_map, block, predicted.sqrt().float().cpu().numpy()))
        if self.extras.trust_mask is not None:
            digests.append(self._write_mask(block, is_trusted))
        return digests

    def _is_trusted(self, block: Block, depth: int | None) -> Tensor:
        """Find the pixels of a block from a distance from the frame on; none if that is `None`."""
        distance = edge_distance(self.problem.image_size, block.core)
        return torch.zeros_like(distance) > 0 if depth is None else distance >= depth

    def clear_mask(self, block: Block) -> None:
        """Trust no pixel of a block that was written."""
        self._write_mask(block, self._is_trusted(block, None))

    def _write_mask(self, block: Block, is_trusted: Tensor) -> str:
        assert self.extras.trust_mask is not None
        whole = (TRUSTED * is_trusted).to(torch.uint8).expand(block.n_batch, 1, *is_trusted.shape)
        return write_block(self.extras.trust_mask, block, whole.cpu().numpy())

    def _thumbnails(
        self, block: Block, values: Tensor, core: Tensor, predicted: Tensor | None
    ) -> tuple[ThumbnailPart, ...]:
        """Average the first image of a series: its data, the estimate, and the error."""
        if any(part.start for part in block.batch):
            return ()
        of_image, of_data = thumbnails_of(self.problem)
        at = self._own_data(block)
        own = tuple(slice(a - data[0], b - data[0]) for (a, b), data in zip(at, block.data, strict=True))
        parts = [
            of_data.part("input", values[0][(slice(0, N_CHANNELS), *own)], at),
            of_image.part("estimate", core[0, :N_CHANNELS], block.core),
        ]
        if predicted is not None:
            squared = of_image.part("squared error", predicted[0].mean(dim=0, keepdim=True), block.core)
            parts.append(squared)
        return tuple(part for part in parts if part is not None)

    def _own_data(self, block: Block) -> list[Interval]:
        """Give the data that lie under the pixels that a block writes."""
        found = []
        for cut, (start, stop), data in zip(self.problem.cuts, block.core, block.data, strict=True):
            first = 0 if start == 0 else start + cut.shift
            last = cut.n_data if stop == cut.n_image else stop + cut.shift
            low, high = max(first, data[0], 0), min(last, data[1], cut.n_data)
            found.append((low, max(low, high)))
        return found


def thumbnails_of(problem: BlockProblem) -> tuple[Thumbnail, Thumbnail]:
    """Lay out the thumbnails of the image and of the data."""
    steps = choose_steps(problem.image_size)
    return Thumbnail(problem.image_size, steps), Thumbnail(problem.data_size, steps)


def region_of(target: RegionTarget, block: Block) -> Region:
    """Give the part of a file that a block writes."""
    layout = Layout(target.axes, target.shape, len(block.core))
    return layout.region(block.batch, [slice(*interval) for interval in block.core])


def write_block(target: RegionTarget, block: Block, images: Array) -> str:
    """Write pixels of shape `(B, C, *core)`; gives their digest."""
    region = region_of(target, block)
    layout = Layout(target.axes, tuple(part.stop - part.start for part in region), len(block.core))
    samples = from_images(layout, images)
    target.write(region, samples)
    return samples_digest(samples)
