"""Kernel fields in files."""

import pytest
import torch
from cases import random
from safetensors.torch import save_file

import deconv_cli
from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.models.kernel_files import read_kernel
from deconv_cli.vocabulary import Convention

FIELD = deconv_cli.KernelField(random((2, 3, 4, 5), dtype=torch.float32), (0.25, 0.75), (0.1, 0.5, 0.9))


@pytest.fixture
def path(tmp_path):
    deconv_cli.save_kernel_field(FIELD, tmp_path / "field.safetensors", record={"command": "kernel estimate"})
    return tmp_path / "field.safetensors"


def test_a_field_comes_back_as_it_was(path):
    found = deconv_cli.load_kernel_field(path)
    assert torch.equal(found.taps, FIELD.taps)
    assert (found.rows, found.columns) == (FIELD.rows, FIELD.columns)
    with pytest.raises(UsageError, match="exists"):
        deconv_cli.save_kernel_field(FIELD, path)
    deconv_cli.save_kernel_field(found, path, force=True)


def test_it_is_read_as_the_options_say(path):
    assert torch.equal(read_kernel(path, convention=Convention.CONVOLUTION).kernel, FIELD.taps.flip(-1, -2))
    normalized = read_kernel(path, normalize=True)
    torch.testing.assert_close(normalized.kernel.sum(dim=(2, 3)), torch.ones(2, 3))
    assert any("each kernel were divided" in note for note in normalized.notes)
    assert read_kernel(path, layer="kernels").places is None
    with pytest.raises(UsageError, match="clean_kernel"):
        read_kernel(path, clean=True)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    tensors = {"kernels": torch.rand(2, 3, 4, 5), "rows": torch.rand(3), "columns": torch.rand(3)}
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(MalformedInputError, match=r"rows of shape \(n_rows,\).*rows \(3,\)"):
        read_kernel(tmp_path / "f.safetensors")
    save_file({"k": torch.rand(4, 5)}, tmp_path / "k.safetensors")
    with pytest.raises(UsageError, match="should hold a kernel field"):
        deconv_cli.load_kernel_field(tmp_path / "k.safetensors")
