"""The expected error of a large picture: predicted on tiles, spread over all blocks by their detail, and its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from deconv_cli.blocks.block_grid import Block, Interval
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.preview_tiles import N_PIECES, covering_tiles, find_tiles
from deconv_cli.diagnostics.predicted_error import (
    DETAIL_REACH,
    ErrorBand,
    ErrorProfile,
    ExpectedError,
    PredictedError,
    pool_errors,
    pool_profiles,
    smoothed_energy,
)
from deconv_cli.diagnostics.residual import band_counts, edge_distance
from deconv_cli.errors import as_path
from deconv_cli.io.codec import from_images
from deconv_cli.io.layout import Array, Layout
from deconv_cli.io.output import plan_regions
from deconv_cli.io.records import samples_digest
from deconv_cli.io.region_arrays import Region, RegionTarget
from deconv_cli.operators.axes import crop
from deconv_cli.vocabulary import OutputDType, Size, counted, format_size


@dataclass(frozen=True, eq=False)
class SampledError(ExpectedError):
    """The expected error of a whole picture, and the source of the prediction in words."""

    pieces: str
    share: float = 0.0

    @property
    def trusted_share(self) -> float:
        """The part of the pixels that is trusted."""
        return self.share


@dataclass(frozen=True)
class ErrorSample:
    """The error that was predicted on some tiles.

    Attributes:
        profiles: by the distance from the edge, for each channel, or one if the kernel mixes channels.
        pooled: over all tiles.
        n_pieces: tiles of `sides` samples.
    """

    profiles: tuple[ErrorProfile, ...]
    pooled: ExpectedError
    n_pieces: int
    sides: Size

    @property
    def trusted_depth(self) -> int | None:
        """Distance from the edge from which on every channel is trusted; `None` if a channel is trusted nowhere."""
        depths = [profile.trusted_depth for profile in self.profiles]
        return None if None in depths else max(depth or 0 for depth in depths)

    def expected(self, image: Tensor, at: Sequence[Interval], size: Size) -> tuple[Tensor, Tensor]:
        """Return the expected squared error of each pixel, of the shape of the image, and which pixels to trust.

        The image is a part of the estimate, in light if light is restored, shape `(B, C, *part)`; it lies `at` a place
        of the whole. A pixel is trusted if it lies deep enough, and if its error is less than the contrast around it in
        every image and channel; shape `part`.
        """
        n_axes, distance = len(size), edge_distance(size, at, image.device)
        trusted = distance >= (math.inf if self.trusted_depth is None else self.trusted_depth)
        found = []
        for profile, values in zip(self.profiles, image.unflatten(1, (len(self.profiles), -1)).unbind(1), strict=True):
            squared = profile.squared_parts(smoothed_energy(values, n_axes), distance)["predicted"]
            trusted &= ~profile.outweighs(values, squared, n_axes).any(dim=0)
            found.append(squared)
        return torch.cat(found, dim=1), trusted

    def of_part(self, image: Tensor, at: Sequence[Interval], size: Size) -> PredictedError:
        """Predict the error of each pixel of a part of the image, and mark the pixels to trust; see `expected`."""
        squared, trusted = self.expected(image, at, size)
        return PredictedError(**vars(self.pooled), map=squared.sqrt(), trusted=trusted)

    def of_whole(self, size: Size, mean_square: float, *, is_trusted: bool) -> SampledError:
        """Describe the error of the whole picture by the mean square that is expected over all blocks."""
        bands = self.pooled.bands
        counts = band_counts(size, len(bands))

        def mean(values: Sequence[float]) -> float:
            return sum(n * value for n, value in zip(counts, values, strict=True)) / sum(counts)

        noise = mean([(band.noise or 0.0) ** 2 for band in bands])
        missing = mean([band.predicted**2 - (band.noise or 0.0) ** 2 for band in bands])
        # The whole may have more or less detail than the tiles.
        share = math.sqrt(max(mean_square - noise, 0.0) / missing) if missing > 0 else 1.0
        pieces = f"{counted(self.n_pieces, 'piece')} of {format_size(self.sides)} samples, and the detail of all blocks"
        of_whole = {
            "bands": tuple(_scaled(band, n, share) for band, n in zip(bands, counts, strict=True)),
            "trusted_depth": self.trusted_depth if is_trusted else None,
        }
        return SampledError(**vars(self.pooled) | of_whole, pieces=pieces)


def sample_error(problem: BlockProblem, sides: Size) -> ErrorSample:
    """Predict the error of tiles of these sides, as if each tile had the frame of the whole picture."""
    pipeline, found = problem.pipeline(), list[PredictedError]()
    tiles = covering_tiles(problem, find_tiles(problem, sides), sides, N_PIECES)
    for number, tile in enumerate(tiles):
        data = tile.data(sides, problem.data_size)
        result = problem.predict(problem.read(tile.batch, data), data, pipeline, number, len(tiles))
        assert result.predicted_error is not None
        found.append(result.predicted_error)
    pooled = pool_errors(found, [1.0] * len(found), (len(found), *found[0].map.shape))
    n_groups = len(found[0].profiles)
    known = {field.name: getattr(pooled, field.name) for field in fields(ExpectedError)}
    return ErrorSample(
        profiles=tuple(pool_profiles(pooled.profiles[group::n_groups]) for group in range(n_groups)),
        pooled=ExpectedError(**known | {"in_samples": None}),  # which is that of one piece
        n_pieces=len(found),
        sides=sides,
    )


def _scaled(band: ErrorBand, n_pixels: int, share: float) -> ErrorBand:
    """Set the number of pixels of a band, and scale the parts of its error that the data leave open."""
    if band.noise is None or band.null_space is None or band.outside_frame is None:
        return replace(band, n_pixels=n_pixels, predicted=share * band.predicted)
    null_space, outside = share * band.null_space, share * band.outside_frame
    predicted = math.hypot(band.noise, null_space, outside)
    return replace(band, n_pixels=n_pixels, predicted=predicted, null_space=null_space, outside_frame=outside)


TRUSTED = 255
"""Sample of a mask where the estimate can be trusted; 0 elsewhere."""


@dataclass(frozen=True)
class ExtraFiles:
    """Files beside the estimate.

    Attributes:
        error_map: file for the expected error.
        trust_mask: file for the mask of trust.
    """

    error_map: str | PathLike[str] | None = None
    trust_mask: str | PathLike[str] | None = None


NO_FILES = ExtraFiles()


@dataclass(frozen=True, eq=False)
class BlockExtras:
    """What is made beside the estimate, as `ExtraFiles` says."""

    error_map: RegionTarget | None = None
    trust_mask: RegionTarget | None = None

    @property
    def targets(self) -> tuple[RegionTarget, ...]:
        """The files that are written."""
        return tuple(target for target in (self.error_map, self.trust_mask) if target is not None)

    def with_units(self, target: RegionTarget, n_axes: int) -> RegionTarget:
        """Enlarge the units of the result so that they are whole units of all other files too."""
        layout, units = Layout(target.axes, target.shape, n_axes), list(target.unit)
        places = (*layout.batch_axes, *map(layout.axes.index, layout.space))
        for other in self.targets:
            own = Layout(other.axes, other.shape, n_axes)
            along = (*own.batch_axes, *map(own.axes.index, own.space))
            for place, axis in zip(places, along, strict=True):
                units[place] = math.lcm(units[place], other.unit[axis])
        return replace(target, unit=tuple(units))


NO_EXTRAS = BlockExtras()


def plan_file(
    problem: BlockProblem,
    path: Path,
    n_channels: int,
    output_dtype: OutputDType | None,
    *,
    force: bool | None,
    make_folder: bool = False,
) -> RegionTarget:
    """Plan a file of the size of the estimate; nothing is written yet."""
    return plan_regions(
        path,
        problem.source,
        problem.layout,
        n_channels=n_channels,
        size=problem.image_size,
        output_dtype=output_dtype,
        force=force,
        make_folder=make_folder,
    )


def plan_extras(problem: BlockProblem, files: ExtraFiles, *, force: bool | None = False) -> BlockExtras:
    """Plan the files; write nothing yet. `force` is `None` if the caller checks existing files.

    Raises:
        UsageError: a file exists or cannot be written by parts.
    """

    def planned(path: str | PathLike[str] | None, n_channels: int, dtype: OutputDType) -> RegionTarget | None:
        return None if path is None else plan_file(problem, as_path(path), n_channels, dtype, force=force)

    return BlockExtras(
        error_map=planned(files.error_map, problem.n_channels, OutputDType.FLOAT32),
        trust_mask=planned(files.trust_mask, 1, OutputDType.UINT8),
    )


def write_extras(
    problem: BlockProblem, extras: BlockExtras, error: ErrorSample | None, block: Block, image: Tensor
) -> tuple[float | None, float, tuple[str, ...]]:
    """Write the error map and the mask of a block, from its estimate `(B, C_in, *image)`.

    Returns:
        The sum of the expected squared error, `None` without a prediction; the part of the pixels that is trusted; and
        the digest of the samples that were written into each file.
    """
    if error is None:
        return None, 0.0, ()
    digests, curve = list[str](), problem.resolution.tone_curve
    if curve is not None and problem.resolved.is_linear:  # errors of other estimates are in stored values
        image = curve.to_light(image, len(block.core))
    # Detail is measured within the frame.
    reached = []
    for cut, data, (start, stop) in zip(problem.cuts, block.data, block.core, strict=True):
        first, last = cut.image_of(data)
        reached.append((max(start - DETAIL_REACH, first, 0), min(stop + DETAIL_REACH, last, cut.n_image)))
    around = problem.crop(image, block.data, reached)
    starts = tuple(start - near for (start, _), (near, _) in zip(block.core, reached, strict=True))
    size = tuple(stop - start for start, stop in block.core)
    squared, is_trusted = (crop(part, starts, size) for part in error.expected(around, reached, problem.image_size))
    if extras.error_map is not None:
        digests.append(write_block(extras.error_map, block, squared.sqrt().float().cpu().numpy()))
    if extras.trust_mask is not None:
        digests.append(write_mask(extras.trust_mask, block, is_trusted.cpu()))
    return float(squared.double().sum()), float(is_trusted.double().mean()), tuple(digests)


def write_mask(target: RegionTarget, block: Block, is_trusted: Tensor) -> str:
    """Write the part of a mask that a block covers; `is_trusted` has the shape of the block or is a single value."""
    size = [stop - start for start, stop in block.core]
    return write_block(target, block, (TRUSTED * is_trusted).to(torch.uint8).expand(block.n_batch, 1, *size).numpy())


def region_of(target: RegionTarget, block: Block) -> Region:
    """Return the part of a file that a block writes."""
    layout = Layout(target.axes, target.shape, len(block.core))
    return layout.region(block.batch, [slice(*interval) for interval in block.core])


def write_block(target: RegionTarget, block: Block, images: Array) -> str:
    """Write pixels of shape `(B, C, *core)`; return their digest."""
    region = region_of(target, block)
    layout = Layout(target.axes, tuple(part.stop - part.start for part in region), len(block.core))
    samples = from_images(layout, images)
    target.write(region, samples)
    return samples_digest(samples)
