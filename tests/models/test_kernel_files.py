"""Kernels: tensors as conv2d takes them, pictures as point-spread functions."""

import re

import numpy as np
import pytest
import tifffile
import torch
from cases import random
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import deconv_cli
from deconv_cli.errors import (
    MalformedInputError,
    ShapeError,
    UnsafeInputError,
    UsageError,
)
from deconv_cli.models.kernel_files import read_kernel
from deconv_cli.vocabulary import Convention


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3)])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int32", "float32"),
    ],
)
def test_tensors_are_taken_as_they_are(tmp_path, shape, dtype, expected):
    taps = torch.arange(1, 1 + int(np.prod(shape))).reshape(shape).to(getattr(torch, dtype))
    torch.save(taps, tmp_path / "k.pt")
    found = read_kernel(tmp_path / "k.pt")
    assert found.kernel.dtype == getattr(torch, expected)
    assert found.convention is Convention.CORRELATION
    assert torch.equal(found.kernel, taps.to(found.kernel.dtype))
    flipped = read_kernel(tmp_path / "k.pt", convention=Convention.CONVOLUTION)
    assert torch.equal(flipped.kernel, found.kernel.flip(-1, -2))
    assert any("reversed along" in note for note in flipped.notes)


def test_layers_of_a_model_and_their_bias(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 3, bias=False))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        found = read_kernel(tmp_path / name, layer="0")
        assert torch.equal(found.kernel, model[0].weight)
        assert torch.equal(found.bias, model[0].bias)
        assert found.layer == "0"
        assert torch.equal(read_kernel(tmp_path / name, layer="0.weight").bias, model[0].bias)
        assert read_kernel(tmp_path / name, layer="2").bias is None
        with pytest.raises(UsageError, match=r"0.weight \(4, 3, 5, 5\).*2.weight.*layer=\"NAME\""):
            read_kernel(tmp_path / name)
        with pytest.raises(UsageError, match="no layer named '7'"):
            read_kernel(tmp_path / name, layer="7")


def test_the_only_kernel_needs_no_name(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.BatchNorm2d(4))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.pt")
    found = read_kernel(tmp_path / "m.pt")
    assert torch.equal(found.bias, model[0].bias)
    assert found.layer == "state_dict.0"
    torch.save(torch.nn.Conv2d(3, 4, 5).state_dict(), tmp_path / "c.pt")
    assert read_kernel(tmp_path / "c.pt").bias.shape == (4,)


def test_a_whole_number_picture_is_a_normalized_convolution(tmp_path):
    taps = np.arange(15, dtype="uint8").reshape(3, 5)
    Image.fromarray(taps).save(tmp_path / "k.png")
    found = read_kernel(tmp_path / "k.png")
    np.testing.assert_allclose(found.kernel.numpy(), taps[::-1, ::-1] / taps.sum(), rtol=1e-6)
    assert found.convention is Convention.CONVOLUTION
    assert any("sum (105)" in note for note in found.notes)
    raw = read_kernel(tmp_path / "k.png", normalize=False, convention=Convention.CORRELATION)
    np.testing.assert_array_equal(raw.kernel.numpy(), taps)


def test_a_float_picture_is_divided_by_its_sum_unless_that_is_one(tmp_path, rng):
    taps = rng.random((3, 5))
    tifffile.imwrite(tmp_path / "k.tif", taps)
    found = read_kernel(tmp_path / "k.tif")
    assert found.kernel.dtype == torch.float64
    np.testing.assert_allclose(found.kernel.numpy(), taps[::-1, ::-1] / taps.sum(), rtol=1e-12)
    assert any("divided by their sum" in note for note in found.notes)
    np.testing.assert_array_equal(read_kernel(tmp_path / "k.tif", normalize=False).kernel, taps[::-1, ::-1])
    tifffile.imwrite(tmp_path / "one.tif", 0.995 * taps / taps.sum())
    one = read_kernel(tmp_path / "one.tif")
    np.testing.assert_array_equal(one.kernel.numpy(), (0.995 * taps / taps.sum())[::-1, ::-1])
    assert float(read_kernel(tmp_path / "one.tif", normalize=True).kernel.sum()) == pytest.approx(1)


def test_what_an_array_means_on_a_picture_is_said(tmp_path):
    taps = np.outer([1, 2, 1], [3, 2, 1]).astype("float32")
    np.save(tmp_path / "k.npy", taps)
    orientation, brightness = read_kernel(tmp_path / "k.npy").picture_notes
    assert 'convention="convolution"' in orientation
    assert "add up to 24" in brightness
    assert "normalize=True" in brightness
    assert read_kernel(tmp_path / "k.npy", convention=Convention.CORRELATION, normalize=False).picture_notes == ()
    np.save(tmp_path / "even.npy", (taps + taps[::-1, ::-1]) / 48)
    assert read_kernel(tmp_path / "even.npy").picture_notes == ()
    np.save(tmp_path / "one.npy", taps[None])
    assert read_kernel(tmp_path / "one.npy").kernel.shape == (3, 3)
    np.save(tmp_path / "layer.npy", np.stack([np.stack([taps] * 2)] * 2))
    assert read_kernel(tmp_path / "layer.npy").picture_notes == ()


def test_colors_of_a_picture_are_kernels_of_channels_if_they_differ(tmp_path, rng):
    gray = rng.integers(1, 255, (3, 5)).astype("uint8")
    Image.fromarray(np.repeat(gray[..., None], 3, axis=2)).save(tmp_path / "equal.png")
    assert read_kernel(tmp_path / "equal.png").kernel.shape == (3, 5)
    color = rng.integers(0, 255, (3, 5, 3)).astype("uint8")
    Image.fromarray(color).save(tmp_path / "color.png")
    found = read_kernel(tmp_path / "color.png")
    expected = color[::-1, ::-1].transpose(2, 0, 1) / color.sum(axis=(0, 1))[:, None, None]
    np.testing.assert_allclose(found.kernel.numpy(), expected, rtol=1e-6)
    assert any("each of the 3 channels has its own kernel" in note for note in found.notes)
    times = {"photometric": "minisblack", "metadata": {"axes": "TYX"}}
    tifffile.imwrite(tmp_path / "film.tif", np.ones((4, 3, 5), "float32"), **times)
    with pytest.raises(ShapeError, match="stack of planes along Z, but has axes TYX"):
        read_kernel(tmp_path / "film.tif")


@pytest.mark.parametrize("shape", [(), (2, 1, 1, 1, 3, 3)])
def test_other_shapes_are_refused(tmp_path, shape):
    np.save(tmp_path / "k.npy", np.ones(shape))
    with pytest.raises(ShapeError, match=re.escape(str(shape))):
        read_kernel(tmp_path / "k.npy")


def test_useless_kernels_are_refused(tmp_path):
    torch.save(torch.zeros(3, 3), tmp_path / "zero.pt")
    with pytest.raises(MalformedInputError, match="they are all zero"):
        read_kernel(tmp_path / "zero.pt")
    torch.save(torch.zeros(3, 0), tmp_path / "empty.pt")
    with pytest.raises(MalformedInputError, match="empty"):
        read_kernel(tmp_path / "empty.pt")
    torch.save(torch.tensor([[1.0, float("inf")], [1, 1]]), tmp_path / "inf.pt")
    with pytest.raises(MalformedInputError, match=r"1 of 4 .*\(0, 1\)"):
        read_kernel(tmp_path / "inf.pt")
    torch.save(torch.tensor([[1.0, -1.0]]), tmp_path / "sum.pt")
    with pytest.raises(UsageError, match="zero"):
        read_kernel(tmp_path / "sum.pt", normalize=True)


def test_the_bias_that_was_read_is_named(tmp_path, save, network):
    path = save({"body": network.state_dict()})
    found = read_kernel(path, layer="body.0")
    (note,) = found.notes
    assert note.startswith("the bias 'body.0.bias' of 4 numbers was read too; invert subtracts it from")
    bare = read_kernel(path, layer="body.0", bias=False)
    assert bare.bias is None
    assert bare.notes == ("the bias 'body.0.bias' was not used",)
    assert torch.equal(bare.kernel, found.kernel)
    assert read_kernel(path, layer="body.3", bias=True).notes == ()


def test_a_bias_that_does_not_fit(save, refused):
    path = save({"a.weight": torch.ones(4, 3, 3, 3), "a.bias": torch.ones(5)})
    refused(ShapeError, read_kernel, path, layer="a", says=["bias 'a.bias'", "(4,)", "(5,)"])
    path = save({"a.weight": torch.ones(4, 3, 3, 3), "a.bias": torch.tensor([0, 1, 2, float("nan")])})
    refused(MalformedInputError, read_kernel, path, layer="a", says="1 of 4 bias samples")


class TestWholeModules:
    def test_a_plain_convolution(self, save, network):
        found = read_kernel(save(network), layer="0")
        assert torch.equal(found.kernel, network[0].weight)
        assert torch.equal(found.bias, network[0].bias)
        assert "stride 1,1, padding 0,0, dilation 1,1, groups 1" in found.notes[0]

    def test_what_is_no_convolution(self, save, refused):
        path = save(nn.Sequential(nn.Linear(2, 4), nn.Flatten()))
        refused(MalformedInputError, read_kernel, path, layer="0", says=["'0.weight' of", "Linear(in_features=2"])

    def test_settings_that_are_none(self, save, refused):
        layer = nn.Conv2d(2, 4, 3)
        layer.stride = torch.ones(2)
        refused(MalformedInputError, read_kernel, save(layer), says="stride")

    def test_a_class_that_is_not_of_torch(self, save, code):
        from deconv_cli.models.model_files import load_named

        own = load_named(f"{code('class Own(nn.Conv2d):' + chr(10) + '    pass' + chr(10))}:Own", "model").value
        with pytest.raises(UnsafeInputError, match=r"Own.*deconv kernel extract .* --model file\.py:Class"):
            read_kernel(save(own(2, 4, 3)))


class TestTensorsThatAreNoKernels:
    def test_containers_without_end(self, save, refused):
        endless = []
        endless.append(endless)
        doubling = [[], []]
        for _ in range(60):
            doubling = [doubling, doubling]
        many = []
        many += [many] * 200_000
        for found in (endless, doubling, many):
            refused(MalformedInputError, read_kernel, save(found), says="nests its dictionaries without end")
        assert read_kernel(save({"losses": [0.5] * 200_000, "kernel": torch.ones(3, 3)})).layer == "kernel"


@pytest.mark.parametrize("options", [{"metadata": None}, {"imagej": True, "metadata": {"axes": "ZYX"}}])
def test_a_stack_of_pages_is_a_point_spread_function_of_three_axes(tmp_path, rng, options):
    pages = (rng.random((5, 3, 4)) * 1000).astype("uint16")
    tifffile.imwrite(tmp_path / "psf.tif", pages, photometric="minisblack", **options)
    found = read_kernel(tmp_path / "psf.tif")
    assert (found.dimensions, found.is_ambiguous) == (3, False)
    np.testing.assert_allclose(found.kernel, pages[::-1, ::-1, ::-1] / pages.sum(), rtol=1e-6)
    assert any("all three axes" in note for note in found.notes)
    with pytest.raises(UsageError, match="spans 3 axes, but the images have 2"):
        read_kernel(tmp_path / "psf.tif", dimensions=2)


@pytest.mark.parametrize(
    ("shape", "dimensions", "taken", "is_ambiguous"),
    [
        *[((7,), None, 1, False), ((4, 2, 7), 1, 1, False), ((2, 7), 1, 1, False)],
        *[((5, 3, 4), None, 2, True), ((5, 3, 4), 3, 3, False), ((5, 3, 4), 2, 2, False), ((3, 4), 3, 2, False)],
        *[((2, 5, 3, 4), 3, 3, False), ((2, 1, 5, 3, 4), None, 3, False)],
    ],
)
def test_axes_of_space_of_a_tensor_of_taps(tmp_path, rng, shape, dimensions, taken, is_ambiguous):
    taps = rng.random(shape)
    np.save(tmp_path / "k.npy", taps)
    options = {"dimensions": dimensions, "convention": Convention.CONVOLUTION, "normalize": True}
    found = read_kernel(tmp_path / "k.npy", **options)
    assert (found.dimensions, found.is_ambiguous) == (taken, is_ambiguous)
    space = tuple(range(-taken, 0))
    shares = tuple(range(1, len(shape))) if len(shape) == taken + 2 else space
    np.testing.assert_allclose(found.kernel, np.flip(taps, space) / taps.sum(axis=shares, keepdims=True))


def test_more_axes_than_a_kernel_has_are_refused(tmp_path):
    np.save(tmp_path / "k.npy", np.ones((2, 2, 3, 3)))
    with pytest.raises(ShapeError, match="dimensions=1"):
        read_kernel(tmp_path / "k.npy", dimensions=1)


FIELD = deconv_cli.KernelField(random((2, 3, 4, 5), dtype=torch.float32), (0.25, 0.75), (0.1, 0.5, 0.9))


@pytest.fixture
def field_path(tmp_path):
    deconv_cli.save_kernel_field(FIELD, tmp_path / "field.safetensors", record={"command": "kernel estimate"})
    return tmp_path / "field.safetensors"


def test_a_field_comes_back_as_it_was(field_path):
    found = deconv_cli.load_kernel_field(field_path)
    assert torch.equal(found.taps, FIELD.taps)
    assert (found.rows, found.columns) == (FIELD.rows, FIELD.columns)
    with pytest.raises(UsageError, match="exists"):
        deconv_cli.save_kernel_field(FIELD, field_path)
    deconv_cli.save_kernel_field(found, field_path, force=True)


def test_a_field_is_read_as_the_options_say(field_path):
    assert torch.equal(read_kernel(field_path, convention=Convention.CONVOLUTION).kernel, FIELD.taps.flip(-1, -2))
    normalized = read_kernel(field_path, normalize=True)
    torch.testing.assert_close(normalized.kernel.sum(dim=(2, 3)), torch.ones(2, 3))
    assert any("each kernel were divided" in note for note in normalized.notes)
    assert read_kernel(field_path, layer="kernels").places is None
    with pytest.raises(UsageError, match="clean_kernel"):
        read_kernel(field_path, clean=True)


def test_tensors_of_a_field_that_do_not_fit_are_refused(tmp_path):
    tensors = {"kernels": torch.rand(2, 3, 4, 5), "rows": torch.rand(3), "columns": torch.rand(3)}
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(MalformedInputError, match=r"rows of shape \(n_rows,\).*rows \(3,\)"):
        read_kernel(tmp_path / "f.safetensors")
    save_file({"k": torch.rand(4, 5)}, tmp_path / "k.safetensors")
    with pytest.raises(UsageError, match="should hold a kernel field"):
        deconv_cli.load_kernel_field(tmp_path / "k.safetensors")
