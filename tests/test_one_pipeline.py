"""The library and the command line are one pipeline: the same bytes, refusals and reasons for every setting."""

import json
import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import deconv_cli
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode, exit_code_for
from deconv_cli.prompt_sentences import with_options
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import format_padding, option_name
from deconv_cli.workflows.resolve_settings import InputMetadata

SIZE = (20, 18)

ACCEPTED = [
    {},
    {"defaults": "tensor"},
    {"defaults": "picture"},
    {"dimensions": 2},
    {"padding": "valid", "boundary": "unknown", "lam": 1e-3},
    {"padding": "full"},
    {"padding": (2, 1)},
    {"stride": (2, 1), "dilation": 2, "input_size": (39, 18)},
    {"transposed": True, "padding": 1},
    {"transposed": True, "stride": 3, "output_padding": (2, 1), "padding": 0, "groups": 1},
    *({"boundary": name, "lam": 1e-3} for name in ("auto", *deconv_cli.BOUNDARIES)),
    {"light": "auto"},
    {"lam": 0.0},
    {"lam": 1e-2},
    {"lam": "auto"},
    *({"lambda_rule": rule} for rule in ("gcv", "ml", "discrepancy", "upre", "whiteness")),
    {"lam": "auto", "noise_sigma": 0.1},
    {"lam": "auto", "noise": "white", "defaults": "picture"},
    *({"penalty": name, "lam": 1e-2} for name in deconv_cli.PENALTIES),
    {"penalty": "gradient", "spacing": (2.0, 1.0), "lam": 1e-2},
    {"prior": "tv", "weight": 0.05, "spacing": (1.0, 3.0)},
    {"nonnegative": True, "lam": 1e-2},
    {"prior": "tv", "weight": 0.05},
    {"prior": "tv", "weight": "auto", "noise_sigma": 0.1},
    {"prior": "tv", "weight": 0.05, "iterations": 4},
    {"prior": "photo", "strength": 1.5, "noise_sigma": 0.1},
    {"method": "richardson-lucy", "gain": 0.1},
    {"method": "richardson-lucy", "iterations": 4, "defaults": "tensor"},
    *({"method": name, "lam": 1e-2} for name in ("auto", "strip", "iterative")),
    {"method": "fft", "boundary": "circular", "lam": 1e-2},
    {"tolerance": 1e-3, "method": "iterative", "lam": 1e-3},
    {"max_iterations": 3, "method": "iterative", "lam": 1e-4},
    {"max_memory": 10**9},
    {"dtype": "float64"},
    {"predict": True, "lam": 1e-2, "seed": 3},
]

REFUSED = [
    {"defaults": "photograph"},
    {"dimensions": 4},
    {"padding": "sameish"},
    {"padding": 100},
    {"stride": 0},
    {"dilation": -1},
    {"groups": 2},
    {"transposed": True, "boundary": "reflect"},
    {"output_padding": 1},
    {"input_size": (7, 7)},
    {"boundary": "sideways"},
    {"boundary": "reflect", "padding": 30},
    {"light": "bright"},
    {"light": "linear"},
    {"lam": -1.0},
    {"lam": math.nan},
    {"lambda_rule": "nonsense"},
    {"lambda_rule": "gcv", "lam": 1e-3},
    {"noise_sigma": 0.0},
    {"noise_sigma": 1.0},
    {"noise_sigma": 1.0, "method": "richardson-lucy"},
    {"noise": "pink"},
    {"penalty": "nonsense"},
    {"penalty": "gradient", "spacing": (2.0, 1.0, 1.0)},
    {"penalty": "identity", "spacing": (2.0, 1.0)},
    {"nonnegative": True, "lam": 0.0},
    {"prior": "nonsense"},
    {"strength": 2.0, "prior": "tv"},
    {"prior": "photo", "strength": 0.0},
    {"prior": "tv", "lam": 1e-2},
    {"weight": 1.0},
    {"gain": 1.0},
    {"iterations": 4},
    {"method": "nonsense"},
    {"method": "fft", "lam": 1e-2},
    {"method": "strip", "lam": 0.0},
    {"tolerance": 2.0},
    {"dtype": "float16"},
    {"predict": True, "prior": "tv"},
    {"seed": 1},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Noisy non-negative data of one channel and an asymmetric kernel, as arrays in files."""
    folder = tmp_path_factory.mktemp("one_pipeline")
    random = np.random.default_rng(5)
    kernel = random.random((3, 5)).astype(np.float32)
    kernel /= kernel.sum()
    scene = random.random((1, SIZE[0] + 2, SIZE[1] + 4)).cumsum(1).astype(np.float32)
    y = deconv_cli.forward(torch.from_numpy(scene), torch.from_numpy(kernel), padding="valid").numpy()
    y = (y + 0.1 * random.standard_normal(y.shape)).clip(0).astype(np.float32)
    np.save(folder / "y.npy", y)
    np.save(folder / "k.npy", kernel)
    return folder, torch.from_numpy(y), torch.from_numpy(kernel)


def as_words(settings):
    """Type settings as a person would."""
    words = []
    for name, value in settings.items():
        option = option_name(name)
        if value is True:
            words.append(option)
        else:
            words.append(f"{option}={format_padding(value) if isinstance(value, tuple) else value}")
    return words


def run(folder, settings):
    words = ["invert", str(folder / "y.npy"), "-k", str(folder / "k.npy"), "-o", str(folder / "x.npy")]
    options = ["--output-dtype", "float64", "--force", "--json", "--quiet"]
    return CliRunner().invoke(app, [*words, *options, *as_words(settings)], prog_name="deconv")


def named(settings):
    return ",".join(f"{name}={value}" for name, value in settings.items()) or "nothing"


def test_every_setting_is_tried_both_ways():
    names = {field.name for field in fields(ReconstructionSettings)}
    assert {name for settings in ACCEPTED for name in settings} == names
    # What does not fit the memory as a whole is restored in blocks at the prompt.
    assert {name for settings in REFUSED for name in settings} >= names - {"max_iterations", "max_memory"}


@pytest.mark.parametrize("settings", ACCEPTED, ids=named)
def test_the_same_bytes_and_reasons(files, settings):
    folder, y, kernel = files
    result = deconv_cli.invert(y, kernel, **settings)
    done = run(folder, settings)
    assert done.exit_code == (ExitCode.SUCCESS if result.is_trusted else ExitCode.UNTRUSTWORTHY)
    record = json.loads(done.stdout)
    assert np.load(folder / "x.npy").tobytes() == result.image.double().numpy().tobytes()
    assert record["dimensions"] == result.settings.dimensions == 2
    assert record["boundary"] == result.boundary
    assert record["boundary_reason"] == result.reasons.boundary
    assert (record["light"], record["light_reason"]) == (result.settings.light, result.reasons.light)
    assert record["lambda"] == result.lam
    assert record["lambda_reason"] == (None if result.lam is None else result.reasons.lam)
    assert record["method_reason"] == with_options(result.choice.reason)
    has_certificate = result.solution.status.has_certificate
    assert record["solver"]["certificate"] == (result.solution.certificate if has_certificate else None)
    assert record["residual"]["relative"] == result.residual.relative
    assert record["residual"]["per_channel"] == list(result.residual.per_channel)
    assert [band["residual_rms"] for band in record["border"]] == [band.residual_rms for band in result.border]
    assert record["conditioning"]["sigma_max"] == result.spectrum.sigma_max
    predicted = result.predicted_error
    assert (record["predicted_error"] is None) == (predicted is None)
    if predicted is not None:
        assert record["predicted_error"]["root_mean_square"] == predicted.root_mean_square


@pytest.mark.parametrize("settings", REFUSED, ids=named)
def test_the_same_refusals(files, settings):
    folder, y, kernel = files
    with pytest.raises(deconv_cli.DeconvError) as refused:
        deconv_cli.invert(y, kernel, **settings)
    done = run(folder, settings)
    assert done.exit_code == exit_code_for(refused.value)
    if done.stdout:  # the settings were accepted until the file was read
        assert [failed["error"] for failed in json.loads(done.stdout)["failed"]] == [done.stderr[7:].rstrip("\n")]
    expected, found = with_options(str(refused.value)), done.stderr.removeprefix("error: ").rstrip("\n")
    # What is typed is text: it is shown as it was typed where it is no value of the setting.
    assert found.partition(", but is ")[0] == expected.partition(", but is ")[0]


def test_a_record_and_single_settings_are_not_mixed(files):
    _, y, kernel = files
    with pytest.raises(deconv_cli.UsageError, match="both as a record and as lam"):
        deconv_cli.invert(y, kernel, settings=ReconstructionSettings(), lam=1e-3)
    with pytest.raises(
        deconv_cli.UsageError, match="no setting 'lambda_'; the settings are defaults, dimensions, padding"
    ):
        deconv_cli.invert(y, kernel, lambda_=1e-3)


def test_a_run_notes_what_the_library_notes(tmp_path):
    from PIL import Image

    photograph = Path(__file__).parents[1] / "sample_images" / "camera_blurred.png"
    picture = Image.open(photograph).convert("L").crop((100, 100, 240, 220))
    picture.save(tmp_path / "photo.png")
    words = ["invert", str(tmp_path / "photo.png"), "-k", "disk:2", "-o", str(tmp_path / "x.png"), "--json"]
    record = json.loads(CliRunner().invoke(app, [*words, "--prior=quadratic"], prog_name="deconv").stdout)
    settings = {"defaults": "picture", "prior": "quadratic", "tone_curve": deconv_cli.ToneCurve.srgb(255.0)}
    image = torch.from_numpy(np.array(picture))[None]
    (note,) = deconv_cli.invert(image, deconv_cli.make_kernel("disk:2"), **settings).notes
    assert note.startswith("the kernel is of quite another size or shape than the blur of the picture")
    assert note in record["notes"]


def test_the_library_decides_by_the_metadata_of_a_file():
    y = torch.rand(1, 6, 9, 8, generator=torch.Generator().manual_seed(0))
    kernel, made = torch.ones(3, 3, 3), {"command": "forward", "boundary": "reflect", "padding": "same", "kernel": {}}
    metadata = InputMetadata(record=made, kernel_sha256="other", spacing=(3.0, 1.0, 1.0))
    result = deconv_cli.invert(y, kernel, dimensions=3, penalty="gradient", lam=0.1, metadata=metadata)
    assert result.boundary == "reflect"
    assert result.settings.spacing == (3.0, 1.0, 1.0)
    assert [note[:31] for note in result.notes] == [
        "deconv forward made this file w",
        "differences are divided by dist",
    ]
    with pytest.raises(deconv_cli.UsageError, match="with tap=tan-sum; apply the kernel without"):
        deconv_cli.invert(y, kernel, dimensions=3, metadata=InputMetadata(record=made | {"tap": "tan-sum"}))


def test_settings_are_frozen_and_comparable():
    assert ReconstructionSettings(padding=[1, 2]) == ReconstructionSettings(padding=(1, 2))
    assert len({ReconstructionSettings(lam=1), ReconstructionSettings(lam=1.0)}) == 1
