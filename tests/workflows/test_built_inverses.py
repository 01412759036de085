"""What is kept of the inverses that a pipeline builds, and what is built again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import deconv_cli
from deconv_cli.errors import TooLargeError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.workflows import estimators, pipeline
from deconv_cli.workflows.estimators import BuiltInverses
from deconv_cli.workflows.pipeline import Pipeline


@pytest.fixture
def built(monkeypatch):
    """The sizes of the inverses that are built, in order."""
    sizes = []

    class Counted(PseudoInverse):
        def __init__(self, kernel, image_size, *rest):
            super().__init__(kernel, image_size, *rest)
            sizes.append(tuple(image_size))

    monkeypatch.setattr(estimators, "PseudoInverse", Counted)
    monkeypatch.setattr(pipeline, "PseudoInverse", Counted)
    return sizes


def blurred(channels, size):
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


def find(kept, size, max_memory=None):
    settings = ResolvedSettings(lam=1e-3, max_memory=max_memory)
    return kept.find(Kernel.from_tensor(deconv_cli.make_kernel("gaussian:1")), (size, size), settings)


def test_no_more_is_kept_than_the_memory_allows():
    kept, allowed = BuiltInverses(), 20 * find(BuiltInverses(), 30).cost.n_bytes_built
    for size in (30, 31, 32, 33):
        find(kept, size, allowed)
    assert [inverse.geometry.image_size for inverse in kept._kept.values()] == [(32, 32), (33, 33)]


def test_what_is_kept_makes_room_for_what_does_not_fit_beside_it(monkeypatch):
    kept = BuiltInverses()
    find(kept, 6)

    def build(*arguments):
        if kept._kept:
            raise TooLargeError("no room")
        return PseudoInverse(*arguments)

    monkeypatch.setattr(estimators, "PseudoInverse", build)
    assert find(kept, 7).geometry.image_size == (7, 7)
    with pytest.raises(TooLargeError):
        find(BuiltInverses(), 7, max_memory=10)
