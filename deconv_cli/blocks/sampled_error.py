"""The error to be expected of a large picture: found on pieces of it, and spread over all blocks by their detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deconv_cli.blocks.axis_cut import Interval
from deconv_cli.blocks.block_problem import BlockProblem
from deconv_cli.blocks.fixed_choices import N_PIECES
from deconv_cli.blocks.sample_windows import SampleWindow, covering_windows
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
    """The error to be expected of a whole picture.

    Attributes:
        pieces: what it was found on, in words.
        real: the real error, root mean square, where the truth is known.
        share: part of the pixels that is trusted.
    """

    pieces: str
    real: float | None
    share: float = 0.0

    @property
    def trusted_share(self) -> float:
        """The part of the pixels that is trusted."""
        return self.share

    @property
    def actual_root_mean_square(self) -> float | None:
        """The real error of the whole image, where the truth is known."""
        return self.real


@dataclass(frozen=True)
class ErrorSample:
    """What pieces of a picture tell of its error.

    Attributes:
        profiles: by the distance from the edge, for each channel, or one where the kernel mixes them.
        bands: the same for people, over the pieces.
        sigma: standard deviation of the noise that was drawn.
        exponent: of the images that were drawn; `None` where none were.
        n_probes: how many were drawn for each piece.
        seed: of the random numbers.
        n_pieces: how many pieces.
        sides: of a piece, in samples.
    """

    profiles: tuple[ErrorProfile, ...]
    bands: tuple[ErrorBand, ...]
    sigma: float
    exponent: float | None
    n_probes: int
    seed: int
    n_pieces: int
    sides: Size

    @property
    def trusted_depth(self) -> int | None:
        """From this distance on every channel is trusted; `None` where some is not anywhere."""
        depths = [profile.trusted_depth for profile in self.profiles]
        return None if None in depths else max(depth or 0 for depth in depths)

    def squared_error(self, image: Tensor, at: Sequence[Interval], size: Size) -> Tensor:
        """Give the squared error to be expected of each pixel, of the shape of the image.

        Args:
            image: a part of the estimate, of light where that is restored, shape `(B, C, *part)`.
            at: where it lies in the whole, along each axis of space.
            size: of the whole.
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
        n_profiles = len(self.profiles)
        parts = zip(
            image.unflatten(1, (n_profiles, -1)).unbind(1),
            squared.unflatten(1, (n_profiles, -1)).unbind(1),
            strict=True,
        )
        pairs = zip(self.profiles, parts, strict=True)
        return torch.stack([profile.outweighs(*part, n_axes).any(dim=0) for profile, part in pairs]).any(dim=0)

    def of_whole(self, size: Size, mean_square: float, real: float | None, *, is_trusted: bool) -> SampledError:
        """Describe the error of the whole picture.

        Args:
            size: of its image.
            mean_square: of the error that is expected over all blocks.
            real: root mean square of the real error, where the truth is known.
            is_trusted: whether nothing speaks against the result.
        """
        counts = band_counts(size, len(self.bands))
        n_pixels = sum(counts)

        def mean(values: Sequence[float]) -> float:
            return sum(n * value for n, value in zip(counts, values, strict=True)) / n_pixels

        noise = mean([(band.noise or 0.0) ** 2 for band in self.bands])
        missing = mean([band.predicted**2 - (band.noise or 0.0) ** 2 for band in self.bands])
        # The whole has more detail than the pieces, or less.
        share = math.sqrt(max(mean_square - noise, 0.0) / missing) if missing > 0 else 1.0
        return SampledError(
            bands=tuple(_scaled(band, n, share) for band, n in zip(self.bands, counts, strict=True)),
            trusted_depth=self.trusted_depth if is_trusted else None,
            sigma=self.sigma,
            exponent=self.exponent,
            n_probes=self.n_probes,
            seed=self.seed,
            pieces=f"{counted(self.n_pieces, 'piece')} of {format_size(self.sides)} "
            "samples, and the detail of all blocks",
            real=real,
        )

    def as_record(self) -> dict[str, Any]:
        """Give the numbers as JSON can hold them."""
        return vars(self) | {
            "profiles": [profile.as_record() for profile in self.profiles],
            "bands": [asdict(band) for band in self.bands],
        }

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> ErrorSample:
        """Read what `as_record` gave."""
        read = {
            "profiles": tuple(map(ErrorProfile.of_record, record["profiles"])),
            "bands": tuple(ErrorBand(**band) for band in record["bands"]),
            "sides": tuple(record["sides"]),
        }
        return cls(**record | read)


def sample_error(problem: BlockProblem, windows: Sequence[SampleWindow], sides: Size) -> ErrorSample:
    """Predict the error of some pieces, as if the frame of the picture were theirs.

    Args:
        problem: what is restored, with nothing left open.
        windows: places, those with the most contrast first.
        sides: of the pieces, along each axis of space.
    """
    pipeline, found = problem.pipeline(), list[PredictedError]()
    pieces = covering_windows(problem, windows, sides, N_PIECES)
    for number, window in enumerate(pieces):
        data = window.data(sides, problem.data_size)
        result = problem.examine(problem.read(window.batch, data), data, pipeline, number, len(pieces))
        assert result.predicted_error is not None
        found.append(result.predicted_error)
    pooled = pool_errors(found, [1.0] * len(found), (len(found), *found[0].map.shape))
    n_groups = len(found[0].profiles)
    return ErrorSample(
        profiles=tuple(pool_profiles(pooled.profiles[group::n_groups]) for group in range(n_groups)),
        bands=pooled.bands,
        sigma=pooled.sigma,
        exponent=pooled.exponent,
        n_probes=pooled.n_probes,
        seed=found[0].seed,
        n_pieces=len(found),
        sides=sides,
    )


def _scaled(band: ErrorBand, n_pixels: int, share: float) -> ErrorBand:
    """Give a band with another number of pixels, and so many times the error that the data do not determine."""
    if band.noise is None or band.null_space is None or band.outside_frame is None:
        return replace(band, n_pixels=n_pixels, predicted=share * band.predicted)
    null_space, outside = share * band.null_space, share * band.outside_frame
    predicted = math.hypot(band.noise, null_space, outside)
    return replace(band, n_pixels=n_pixels, predicted=predicted, null_space=null_space, outside_frame=outside)
