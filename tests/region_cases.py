"""Regions of large arrays, and how a result is written by parts."""

import itertools
import pickle

import numpy as np

from deconv_cli.io.layout import Layout
from deconv_cli.io.output import plan_regions


def some_regions(shape, n, seed=0):
    """The whole, one sample, and others."""
    rng = np.random.default_rng(seed)
    yield tuple(slice(0, size) for size in shape)
    yield tuple(slice(size - 1, size) for size in shape)
    for _ in range(n):
        starts = [int(rng.integers(0, size)) for size in shape]
        yield tuple(slice(a, int(rng.integers(a + 1, size + 1))) for a, size in zip(starts, shape, strict=True))


def units(target):
    """The regions that writers share out, in an order of no account."""
    steps = [
        [slice(a, min(a + unit, size)) for a in range(0, size, unit)]
        for unit, size in zip(target.unit, target.shape, strict=True)
    ]
    found = [tuple(region) for region in itertools.product(*steps)]
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def planned(source, path, dimensions=2, **options):
    """A result of the same size and channels."""
    layout = Layout(source.axes, source.shape, dimensions)
    size = [source.shape[source.axes.index(letter)] for letter in layout.space]
    return plan_regions(path, source, layout, n_channels=layout.n_channels, size=size, **options)


def write_all(target, samples):
    """Write all units, each by a copy of the target as another process gets it."""
    for region in units(target):
        pickle.loads(pickle.dumps(target)).write(region, samples[region])
