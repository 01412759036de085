"""What is kept of the inverses that a pipeline builds, and what is built again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import deconv_cli
from deconv_cli.errors import TooLargeError
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.workflows import built_inverses, inversion
from deconv_cli.workflows.built_inverses import BuiltInverses
from deconv_cli.workflows.pipeline import Pipeline


@pytest.fixture
def built(monkeypatch):
    """The sizes of the inverses that are built, in order."""
    sizes = []

    class Counted(PseudoInverse):
        def __init__(self, kernel, image_size, *rest):
            super().__init__(kernel, image_size, *rest)
            sizes.append(tuple(image_size))

    monkeypatch.setattr(inversion, "PseudoInverse", Counted)
    return sizes


def blurred(channels, size):
    """Data that the kernel explains: of others it is tried whether another padding explains them."""
    image = torch.rand(channels, *size, generator=torch.Generator().manual_seed(0))
    return deconv_cli.forward(image, deconv_cli.make_kernel("gaussian:1"))


def restore(pipe, *sizes, channels=1):
    for size in sizes:
        pipe.reconstruct(blurred(channels, size))


def test_sizes_that_take_turns_are_built_once(built):
    pipe = Pipeline(deconv_cli.make_kernel("gaussian:1"), ReconstructionSettings.of(lam=1e-3))
    restore(pipe, (12, 9), (8, 8), (12, 9), (8, 8), (12, 9))
    assert built == [(12, 9), (8, 8)]


def test_threads_that_share_a_pipeline_build_once_and_get_their_own_images(built):
    pipe = Pipeline(deconv_cli.make_kernel("gaussian:1"), ReconstructionSettings.of(lam=1e-3))
    pictures = [blurred(channels, size) for size in ((12, 9), (8, 8)) for channels in (1, 2, 1, 3)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(pipe.reconstruct, pictures))
    assert sorted(built) == [(8, 8), (12, 9)]
    for picture, result in zip(pictures, found, strict=True):
        assert torch.equal(result.image, pipe.reconstruct(picture).image)


def test_channels_with_their_own_kernels_are_built_once(built):
    kernels = torch.stack([deconv_cli.make_kernel("gaussian:1"), deconv_cli.make_kernel("gaussian:1.01")])
    pipe = Pipeline(kernels, ReconstructionSettings.of(lam=1e-3))
    restore(pipe, (9, 8), (9, 8), channels=2)
    assert built == [(9, 8)] * 2


def test_what_is_of_one_image_is_not_kept(built):
    pipe = Pipeline(deconv_cli.make_kernel("gaussian:1"), ReconstructionSettings.of(lam="auto"))
    restore(pipe, (12, 9), (12, 9))
    assert built == [(12, 9)] * 2


def test_colors_between_grays_keep_the_inversions_of_their_channels():
    pipe = Pipeline(deconv_cli.make_kernel("gaussian:1"), ReconstructionSettings.of(lam="auto"))
    restore(pipe, (9, 9), channels=3)
    colors = list(pipe._one_by_one._inversions)
    restore(pipe, (9, 9), channels=2)
    assert pipe._one_by_one._inversions == colors
    assert len(pipe.reconstruct(torch.rand(2, 9, 9)).channels) == 2


def inverse_of(size, max_memory=None):
    return deconv_cli.pseudo_inverse(
        deconv_cli.make_kernel("gaussian:1"), input_size=(size, size), lam=1e-3, max_memory=max_memory
    )


def test_the_one_that_was_not_used_for_longest_goes_first(monkeypatch):
    monkeypatch.setattr(built_inverses, "MAX_INVERSES", 2)
    kept, n_built = BuiltInverses(), []

    def build(size):
        n_built.append(size)
        return inverse_of(size)

    for size in (6, 7, 6, 8, 6, 7):
        assert kept.find(size, lambda size=size: build(size)).geometry.image_size == (size, size)
    assert n_built == [6, 7, 8, 7]


def test_no_more_is_kept_than_the_memory_allows():
    kept, allowed = BuiltInverses(), 20 * inverse_of(30).cost.n_bytes_built
    for size in (30, 31, 32, 33):
        kept.find(size, lambda size=size: inverse_of(size, allowed))
    assert list(kept._kept) == [32, 33]


def test_what_is_kept_makes_room_for_what_does_not_fit_beside_it():
    kept = BuiltInverses()
    kept.find(6, lambda: inverse_of(6))

    def build():
        if kept._kept:
            raise TooLargeError("no room")
        return inverse_of(7)

    assert kept.find(7, build).geometry.image_size == (7, 7)
    with pytest.raises(TooLargeError):
        BuiltInverses().find(7, lambda: inverse_of(7, max_memory=10))
