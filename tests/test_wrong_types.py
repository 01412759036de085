"""An argument of a wrong type is answered by one sentence of the package's own."""

import numpy as np
import pytest
import torch

import deconv_cli
from deconv_cli import DeconvError

WRONG = {"number": 3, "text": "x", "nothing": None, "list": [1.0, 2.0], "array": np.ones(2), "dictionary": {}}
KERNEL, IMAGE, PAIRS = torch.ones(3, 3) / 9, torch.ones(1, 8, 8), [(torch.ones(1, 8, 8), torch.ones(1, 8, 8))]
FIELD = {"taps": torch.ones(2, 2, 3, 3), "rows": (0.2, 0.8), "columns": (0.2, 0.8)}
RECOVERED = deconv_cli.pseudo_inverse(KERNEL, input_size=(8, 8), lam=1e-3)
# Each with right arguments, except those that are given wrongly.
CALLS = {
    "align_kernel": ({"kernel": KERNEL, "image": IMAGE}, ("kernel", "image")),
    "check_gradients": ({}, ("model",)),
    "estimate_free_kernel": ({}, ("image",)),
    "estimate_kernel": ({}, ("image",)),
    "fit_kernel": ({"pairs": PAIRS, "size": (3, 3)}, ("pairs", "size")),
    "forward": ({"x": IMAGE, "kernel": KERNEL}, ("x", "kernel")),
    "forward_taps": ({"x": IMAGE, "kernel": KERNEL, "tap": "product"}, ("x", "kernel", "tap")),
    "invert": ({"y": IMAGE, "kernel": KERNEL}, ("y", "kernel")),
    "invert_blocks": ({"source": "a.tif", "kernel": KERNEL, "target": "b.tif"}, ("source", "kernel")),
    "invert_chain": ({"y": IMAGE, "layers": torch.nn.Conv2d(1, 1, 3)}, ("y", "layers")),
    "list_layers": ({}, ("path",)),
    "load_kernel_field": ({}, ("path",)),
    "load_layer": ({}, ("path",)),
    "make_kernel": ({}, ("text",)),
    "map_blur": ({}, ("image",)),
    "microscope_psf": ({}, ("microscope",)),
    "pseudo_inverse": ({"kernel": KERNEL, "input_size": (8, 8)}, ("kernel", "input_size")),
    "psf_from_beads": ({}, ("image",)),
    "save_kernel_field": ({"path": "f.safetensors", "field": deconv_cli.KernelField(**FIELD)}, ("field",)),
    "save_layer": ({"path": "l.safetensors"}, ("layer",)),
    "solve": ({"A": deconv_cli.Convolution(KERNEL, (8, 8)), "y": IMAGE}, ("A", "y")),
    "Convolution": ({"kernel": KERNEL, "image_size": (8, 8)}, ("kernel", "image_size")),
    "KernelField": (FIELD, ("taps",)),
    "Linearization": ({"function": torch.sin, "at": IMAGE}, ("function", "at")),
    "Microscope": ({"numerical_aperture": 0.8, "emission": 520.0}, ("spacing",)),
    "PseudoInverse": (
        {"kernel": RECOVERED.kernel, "image_size": (8, 8), "settings": RECOVERED.settings},
        ("kernel", "settings", "image_size"),
    ),
    "ToneCurve": ({"white": 1.0}, ("light",)),
    "VaryingConvolution": ({**FIELD, "image_size": (8, 8)}, ("taps",)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_type_is_refused_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right, given = CALLS[name]
    for argument in given:
        for value in WRONG.values():
            with pytest.raises(DeconvError) as refusal:
                getattr(deconv_cli, name)(**right | {argument: value})
            assert str(refusal.value).endswith(".")
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["Gradient", "Laplacian", "Identity"])
def test_a_wrong_shape_is_refused(name):
    for value in WRONG.values():
        with pytest.raises(deconv_cli.UsageError, match="must be a tuple of whole numbers"):
            getattr(deconv_cli, name)(value)


def test_whole_numbers_of_numpy_are_whole_numbers():
    one = np.int64(1)
    assert torch.equal(
        deconv_cli.forward(IMAGE, KERNEL, padding=(one, one), stride=one), deconv_cli.forward(IMAGE, KERNEL, padding=1)
    )
    assert repr(deconv_cli.Identity((one, 8)).input_shape) == "(1, 8)"


def test_the_sentence_says_what_was_expected_and_what_came(tmp_path):
    with pytest.raises(
        deconv_cli.UsageError, match=r"^the model must be of type torch\.nn\.Module, but is of type int\.$"
    ):
        deconv_cli.check_gradients(3)
    with pytest.raises(deconv_cli.UsageError, match="must be a str or a Path, but is of type int"):
        deconv_cli.load_layer(3)
    with pytest.raises(deconv_cli.UsageError, match="an operator must be of type Tensor, but is of type ndarray"):
        deconv_cli.Convolution(KERNEL, (8, 8))(np.ones((1, 8, 8)))
    with pytest.raises(deconv_cli.UsageError, match="rows must be a sequence of numbers, but is 3"):
        deconv_cli.KernelField(**FIELD | {"rows": 3})
    with pytest.raises(deconv_cli.UsageError, match="lambda must be"):
        deconv_cli.ReconstructionSettings(lam=np.ones(2))
    assert list(tmp_path.iterdir()) == []
