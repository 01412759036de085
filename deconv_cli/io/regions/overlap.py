"""What two regions of one array have in common."""

from __future__ import annotations

from deconv_cli.io.regions.region_source import Region


def shape_of(region: Region) -> tuple[int, ...]:
    """Give the shape of a region."""
    return tuple(part.stop - part.start for part in region)


def overlap(first: Region, second: Region) -> tuple[Region, Region]:
    """Give what two regions share, as a region of the first, and as one of the second."""
    starts = [max(a.start, b.start) for a, b in zip(first, second, strict=True)]
    stops = [min(a.stop, b.stop) for a, b in zip(first, second, strict=True)]
    shared = list(zip(starts, stops, strict=True))
    return _relative(shared, first), _relative(shared, second)


def _relative(shared: list[tuple[int, int]], region: Region) -> Region:
    return tuple(slice(a - part.start, b - part.start) for (a, b), part in zip(shared, region, strict=True))
