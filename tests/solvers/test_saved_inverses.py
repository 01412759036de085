"""Inverses in files: what is loaded is what was saved, to the last bit, and nothing else is ever loaded."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import mild_kernel, random

import deconv_cli
from deconv_cli.errors import MalformedInputError, TooLargeError, UsageError
from deconv_cli.io.codecs.safetensors_file import SavedState, read_state, write_state
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.saved_inverses import SavedInverse, read_inverse, write_inverse
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers import dense_border, direct
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.pseudo_inverse import PseudoInverse

SIZE = (9, 8)

# shape of the kernel, and settings; the methods are those that the settings ask for.
PROBLEMS = {
    "fft": ((2, 2, 3, 3), {"method": "fft", "boundary": "circular"}),
    "fft, five channels": ((5, 5, 3, 2), {"method": "fft", "boundary": "circular"}),
    "fft, penalized": (
        (3, 2, 3, 3),
        {"method": "fft", "boundary": "circular", "lam": 1e-3, "penalty": "gradient"},
    ),
    "fft, truncated": ((2, 3, 3, 3), {"method": "fft", "boundary": "circular", "rcond": 0.1}),
    "direct, square": ((2, 2, 3, 3), {"method": "direct"}),
    "direct, five channels": ((5, 5, 3, 3), {"method": "direct"}),
    "direct, no rows": ((2, 2, 1, 3), {"method": "direct"}),
    "direct, tall": ((3, 2, 2, 3), {"method": "direct", "boundary": "reflect", "padding": (2, 1)}),
    "direct, wide": ((2, 3, 3, 3), {"method": "direct", "padding": "valid"}),
    "direct, penalized": (
        (2, 2, 3, 4),
        {"method": "direct", "boundary": "replicate", "lam": 1e-3, "penalty": "laplacian"},
    ),
    "strip": ((2, 2, 3, 3), {"method": "strip", "boundary": "unknown", "lam": 1e-3}),
    "strip, full": ((2, 2, 3, 3), {"method": "strip", "padding": "full", "tolerance": 1e-4}),
    "iterative": ((2, 2, 3, 3), {"method": "iterative", "max_iterations": 300, "boundary": "symmetric"}),
    "iterative, penalized": ((2, 3, 3, 3), {"method": "iterative", "lam": 1e-2}),
    "direct, spaced": (
        (1, 1, 3, 3),
        {"method": "direct", "boundary": "zero", "lam": 1e-3, "penalty": "gradient", "spacing": (3.0, 1.0)},
    ),
    "auto": ((1, 1, 3, 3), {"lam": 1e-4, "boundary": "unknown", "penalty": "gradient"}),
}
HAS_FACTORS = {"fft", "direct", "dense"}


def built(name, dtype=torch.float64, *, shared=False):
    shape, settings = PROBLEMS[name]
    return PseudoInverse(Kernel(mild_kernel(shape).to(dtype), shared), SIZE, ResolvedSettings(**settings))


def outputs_of(inverse, n=2):
    return random((n, *inverse.problem.operator.output_shape), seed=4, dtype=inverse.kernel.taps.dtype)


def saved(inverse, folder):
    path = folder / "inverse.safetensors"
    deconv_cli.save_pseudo_inverse(inverse, path)
    return path


def assert_equal_to_the_last_bit(found, inverse):
    y = outputs_of(inverse)
    expected, solution = inverse.solve(y), found.solve(y)
    assert torch.equal(solution.value, expected.value)
    assert replace(solution, value=None) == replace(expected, value=None)
    assert torch.equal(found(y), inverse(y))
    g = random((2, *inverse.problem.operator.input_shape), seed=5, dtype=y.dtype)
    assert torch.equal(found._inverse.solve_normal(g), inverse._inverse.solve_normal(g))
    assert torch.equal(found._inverse.solve_transposed(g), inverse._inverse.solve_transposed(g))


@pytest.mark.filterwarnings("ignore:the arithmetic's precision ran out:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_loaded_inverse_gives_bit_for_bit_what_the_saved_one_gave(tmp_path, name, dtype):
    inverse = built(name, dtype)
    found = deconv_cli.load_pseudo_inverse(saved(inverse, tmp_path))
    assert found is not inverse
    for attribute in ("choice", "settings", "geometry", "rcond", "tolerance"):
        assert getattr(found, attribute) == getattr(inverse, attribute), attribute
    assert torch.equal(found.kernel.taps, inverse.kernel.taps)
    assert found.problem.weight == inverse.problem.weight
    assert_equal_to_the_last_bit(found, inverse)
    factors, expected = found._inverse.factors(), inverse._inverse.factors()
    assert bool(expected) == (inverse.choice.method in HAS_FACTORS)
    assert factors.keys() == expected.keys()
    for key, factor in factors.items():
        assert torch.equal(factor, expected[key])
        if min(factor.shape) > 1:  # else strides tell nothing
            assert factor.stride() == expected[key].stride()


def test_kernels_for_every_channel_alike_are_loaded_as_such(tmp_path):
    inverse = deconv_cli.pseudo_inverse(mild_kernel((1, 1, 3, 3)), input_size=SIZE, lam=1e-3)
    found = deconv_cli.load_pseudo_inverse(saved(inverse, tmp_path))
    y = random((2, 4, *SIZE))
    assert found(y).shape == (2, 4, *SIZE)
    assert torch.equal(found(y), inverse(y))


def test_the_way_around_a_singular_border_system_is_kept(tmp_path, monkeypatch):
    """Where the rows cannot be eliminated the whole square system is factored; that is what must come back."""

    def fails(*_):
        raise SingularSystemError("made up")

    with monkeypatch.context() as patch:
        patch.setattr(direct, "SquareBorderSystem", fails)
        inverse = built("direct, square")
    assert isinstance(inverse._inverse._system, dense_border.BoundarySystem)
    found = deconv_cli.load_pseudo_inverse(saved(inverse, tmp_path))
    assert isinstance(found._inverse._system, dense_border.BoundarySystem)
    assert_equal_to_the_last_bit(found, inverse)


@pytest.mark.parametrize(
    "name", [name for name, (_, settings) in PROBLEMS.items() if name.startswith(("fft", "direct"))]
)
def test_nothing_is_factored_on_loading(tmp_path, monkeypatch, name):
    path = saved(built(name), tmp_path)

    def costly(*_, **__):
        pytest.fail("something costly was computed")

    for module, names in {
        "deconv_cli.solvers.closed_form": ["inverse_blocks", "torus_symbol"],
        "deconv_cli.solvers.dense_border": ["full_rank_inverse", "torus_blocks"],
        "deconv_cli.solvers.square_border": ["full_rank_inverse", "torus_symbol", "invert_lines", "coupling"],
        "deconv_cli.operators.convolution": ["kernel_spectrum"],
        "torch.linalg": ["lu_factor_ex", "cholesky_ex", "inv_ex", "svd", "svdvals", "solve_triangular"],
    }.items():
        for function in names:
            monkeypatch.setattr(f"{module}.{function}", costly)
    deconv_cli.load_pseudo_inverse(path)


def test_the_factors_are_mapped_and_stay_when_the_file_is_replaced(tmp_path):
    inverse = built("direct, square")
    path = saved(inverse, tmp_path)
    found, y = deconv_cli.load_pseudo_inverse(path), outputs_of(inverse)
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    deconv_cli.save_pseudo_inverse(built("direct, tall"), path, force=True)
    assert torch.equal(found(y), inverse(y))


def test_existing_files_and_other_suffixes_are_refused(tmp_path):
    path = saved(built("fft"), tmp_path)
    with pytest.raises(UsageError, match="force=True"):
        deconv_cli.save_pseudo_inverse(built("fft"), path)
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        deconv_cli.save_pseudo_inverse(built("fft"), tmp_path / "inverse.pt")
    with pytest.raises(UsageError, match="does not exist"):
        deconv_cli.save_pseudo_inverse(built("fft"), tmp_path / "no" / "inverse.safetensors")
    with pytest.raises(UsageError, match="does not exist"):
        deconv_cli.load_pseudo_inverse(tmp_path / "other.safetensors")


def test_a_bias_is_not_forgotten(tmp_path):
    path, bias = tmp_path / "inverse.safetensors", random((2,))
    write_inverse(path, SavedInverse(built("fft"), bias))
    with pytest.raises(UsageError, match="an inverse and a bias"):
        deconv_cli.load_pseudo_inverse(path)
    assert torch.equal(read_inverse(path, torch.device("cpu")).bias, bias)
    for wrong in (random((3,)), torch.full((2,), math.nan), torch.ones(2, dtype=torch.int32)):
        write_inverse(path, SavedInverse(built("fft"), wrong))
        with pytest.raises(MalformedInputError, match="its bias should be 2 finite numbers"):
            read_inverse(path, torch.device("cpu"))


def test_memory_is_bounded_on_loading_too(tmp_path):
    path = saved(built("direct, square"), tmp_path)
    with pytest.raises(TooLargeError):
        deconv_cli.load_pseudo_inverse(path, max_memory=1000)


GONE = object()


def altered(path, name, *, record=None, tensors=None):
    """Save an inverse with some members of its record or some tensors replaced, or `GONE`."""
    write_inverse(path, SavedInverse(built(name)))
    state = read_state(path)
    inverse = {key: value for key, value in (state.record["inverse"] | (record or {})).items() if value is not GONE}
    kept = {key: value for key, value in (state.tensors | (tensors or {})).items() if value is not GONE}
    write_state(path, SavedState(kept, state.record | {"inverse": inverse}))
    return path


RECORDS = {
    "padding is gone": ("fft", {"padding": GONE}, "lacks its 'padding'"),
    "a negative λ": ("fft", {"lambda": -1.0}, "lambda is -1.0"),
    "no σmax": ("fft", {"sigma_max": -2.0}, "sigma_max is -2.0"),
    "an impossible tolerance": ("fft", {"tolerance": 7.0}, "tolerance must be a number between"),
    "a σmax beyond all squares": ("fft", {"sigma_max": 1e300}, "a number of its record is out of range"),
    "three sizes": ("fft", {"image_size": [9, 8, 7]}, "was changed"),
    "a flag that is none": ("fft", {"is_shared": "no"}, "is_shared is 'no'"),
    "channels alike": ("fft", {"is_shared": True}, "cannot act in the same way on every channel"),
    "no method": ("fft", {"method": "auto"}, "name the chosen method"),
    "a method that cannot be": ("direct, square", {"method": "fft"}, "circular convolutions"),
    "a method that needs other factors": ("direct, square", {"method": "iterative"}, "does not use its factors"),
    "factors of another λ": ("direct, square", {"lambda": 1e-3}, "factor '(outputs|twists)' should be .* is missing"),
    "another dtype": ("fft", {"dtype": "float32"}, "its taps are torch.float64, but its record names 'float32'"),
    "truncation where there is none": ("direct, square", {"rcond": 0.1}, "does not go with rcond"),
}


@pytest.mark.parametrize(("name", "record", "sentence"), RECORDS.values(), ids=RECORDS.keys())
def test_settings_that_do_not_fit_are_refused(tmp_path, name, record, sentence):
    path = altered(tmp_path / "altered.safetensors", name, record=record)
    with pytest.raises(MalformedInputError, match=sentence) as caught:
        deconv_cli.load_pseudo_inverse(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") == 0


TENSORS = {
    "no taps": ("fft", {"taps": GONE}, "lacks its 'taps'"),
    "taps that are not finite": ("fft", {"taps": torch.full((2, 2, 3, 3), math.nan, dtype=torch.float64)}, "NaN"),
    "taps of three axes": (
        "fft",
        {"taps": torch.ones(2, 3, 3, dtype=torch.float64)},
        "image_size is .* its taps have the shape",
    ),
    "taps of whole numbers": ("fft", {"taps": torch.ones(2, 2, 3, 3, dtype=torch.int32)}, "its taps are torch.int32"),
    "taps of other channels": ("fft", {"taps": torch.ones(3, 2, 3, 3, dtype=torch.float64)}, "factor 'blocks'"),
    "no blocks": ("fft", {"factor.blocks": GONE}, "factor 'blocks' should be .* but is missing"),
    "blocks in single precision": (
        "fft",
        {"factor.blocks": torch.ones(9, 5, 2, 2, dtype=torch.complex64)},
        "but is torch.complex64",
    ),
    "a factor too many": ("direct, square", {"factor.inputs": torch.ones(3)}, "does not use its factors inputs"),
    "a tensor of another name": ("fft", {"image": torch.ones(3)}, "tensors that are not factors"),
    "a row zero": ("direct, square", {"factor.pivots": torch.zeros(18, dtype=torch.int32)}, "rows from 1 to 18"),
    "a row too many": ("direct, square", {"factor.pivots": torch.full((18,), 19, dtype=torch.int32)}, "rows from 1 to"),
}


@pytest.mark.parametrize(("name", "tensors", "sentence"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_do_not_fit_are_refused(tmp_path, name, tensors, sentence):
    path = altered(tmp_path / "altered.safetensors", name, tensors=tensors)
    with pytest.raises(MalformedInputError, match=sentence) as caught:
        deconv_cli.load_pseudo_inverse(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["iterative", "direct, square", "strip"])
def test_sizes_that_no_memory_holds_are_refused_before_anything_is_allocated(tmp_path, name):
    path = altered(tmp_path / "altered.safetensors", name, record={"image_size": [2**31, 2**20]})
    with pytest.raises(TooLargeError):
        deconv_cli.load_pseudo_inverse(path)
