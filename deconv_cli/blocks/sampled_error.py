"""The expected error of a large picture: predicted on preview tiles, and spread over all blocks by their detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from deconv_cli.blocks.block_grid import Interval
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.fixed_choices import N_PIECES
from deconv_cli.blocks.preview_tiles import covering_tiles, find_tiles
from deconv_cli.diagnostics.predicted_error import (
    ErrorBand,
    ErrorProfile,
    ExpectedError,
    PredictedError,
    pool_errors,
    pool_profiles,
    smoothed_energy,
)
from deconv_cli.diagnostics.residual import band_counts, edge_distance
from deconv_cli.vocabulary import Size, counted, format_size


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
        """Distance from the edge from which on every channel is trusted; `None` if some channel is nowhere."""
        depths = [profile.trusted_depth for profile in self.profiles]
        return None if None in depths else max(depth or 0 for depth in depths)

    def squared_error(self, image: Tensor, at: Sequence[Interval], size: Size) -> Tensor:
        """Return the squared error to be expected of each pixel, of the shape of the image.

        The image is a part of the estimate, in light if light is restored, shape `(B, C, *part)`; it lies `at` a place
        of the whole.
        """
        distance = edge_distance(size, at, image.device)
        groups = image.unflatten(1, (len(self.profiles), -1))
        found = [
            profile.squared_parts(smoothed_energy(groups[:, number], len(size)), distance)["predicted"]
            for number, profile in enumerate(self.profiles)
        ]
        return torch.cat(found, dim=1)

    def outweighs(self, image: Tensor, squared: Tensor, n_axes: int) -> Tensor:
        """Find the pixels whose error exceeds the contrast around them in some image or channel, shape `size`."""
        groups = [values.unflatten(1, (len(self.profiles), -1)).unbind(1) for values in (image, squared)]
        found = zip(self.profiles, *groups, strict=True)
        return torch.stack([profile.outweighs(*part, n_axes).any(dim=0) for profile, *part in found]).any(dim=0)

    def of_part(self, image: Tensor, at: Sequence[Interval], size: Size) -> PredictedError:
        """Predict the error of each pixel of such a part, and mark the pixels to trust."""
        squared, depth = self.squared_error(image, at, size), self.trusted_depth
        is_deep = edge_distance(size, at, image.device) >= (math.inf if depth is None else depth)
        trusted = is_deep & ~self.outweighs(image, squared, len(size))
        return PredictedError(**vars(self.pooled), map=squared.sqrt(), trusted=trusted)

    def of_whole(self, size: Size, mean_square: float, *, is_trusted: bool) -> SampledError:
        """Describe the error of the whole picture by the mean square that is expected over all blocks."""
        bands = self.pooled.bands
        counts = band_counts(size, len(bands))

        def mean(values: Sequence[float]) -> float:
            return sum(n * value for n, value in zip(counts, values, strict=True)) / sum(counts)

        noise = mean([(band.noise or 0.0) ** 2 for band in bands])
        missing = mean([band.predicted**2 - (band.noise or 0.0) ** 2 for band in bands])
        # The whole has more detail than the tiles, or less.
        share = math.sqrt(max(mean_square - noise, 0.0) / missing) if missing > 0 else 1.0
        pieces = f"{counted(self.n_pieces, 'piece')} of {format_size(self.sides)} samples, and the detail of all blocks"
        of_whole = {
            "bands": tuple(_scaled(band, n, share) for band, n in zip(bands, counts, strict=True)),
            "trusted_depth": self.trusted_depth if is_trusted else None,
        }
        return SampledError(**vars(self.pooled) | of_whole, pieces=pieces)


def sample_error(problem: BlockProblem, sides: Size) -> ErrorSample:
    """Predict the error of tiles of these sides, as if the frame of the picture were theirs."""
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
