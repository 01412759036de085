"""`deconv invert --report`: the page of a run, and what is refused before anything is computed."""

import html
import json
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io.atomic import write_page

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def blurred(deconv, tmp_path, gray, gentle):
    """A blurred detail of a photograph with noise."""
    path = tmp_path / "blurred.tif"
    words = ["--boundary", "reflect", "--noise", "gaussian:1"]
    deconv("forward", gray, "-k", gentle, "-o", path, "--quiet", *words)
    return path


def test_a_page_is_written_and_the_record_tells_what_it_shows(deconv, blurred, gentle, values, tmp_path):
    page = tmp_path / "page.html"
    words = ["invert", blurred, "-k", gentle, "-o", tmp_path / "x.tif", "--json", "--quiet"]
    record = deconv(*words, "--report", page).report
    text = page.read_text(encoding="utf-8")
    found = record["diagnosis"]
    assert found["unknowns"] == 32 * 36
    assert 0 < found["degrees_of_freedom"] <= found["unknowns"]
    again = re.search(r"<dt>rerun</dt><dd>(.*?)</dd>", text)[1]
    assert json.loads(html.unescape(again)) == record["rerun"]
    # The command gives the same samples, and needs no page for that.
    assert "--report" not in record["rerun"]
    first = values(tmp_path / "x.tif")
    deconv(*shlex.split(record["rerun"])[1:])
    assert torch.equal(values(tmp_path / "x.tif"), first)
    # So do the commands of the page work as they are.
    listed = [re.sub(r"</?span>", "", line) for line in re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)]
    assert len(set(listed)) == len(listed)
    (sharper,) = (line for line in listed if "_sharper.tif" in line and "_much" not in line)
    deconv(*shlex.split(html.unescape(sharper))[1:])
    assert (tmp_path / "x_sharper.tif").exists()
    assert (tmp_path / "x_sharper.html").exists()


def test_hostile_names_and_metadata_stay_text(deconv, gray, gentle, tmp_path):
    folder = tmp_path / "a & b"
    folder.mkdir()
    info = PngInfo()
    info.add_text("Artist", "<script>alert(2)</script>")
    with Image.open(gray) as picture:
        picture.save(folder / HOSTILE, pnginfo=info)
    kernel = gentle.rename(folder / "<svg onload=alert(3)>.npy")
    page = tmp_path / "page.html"
    deconv("invert", folder / HOSTILE, "-k", kernel, "-o", folder / "<b>.tif", "--report", page)
    text = page.read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "&lt;svg onload=alert(3)&gt;.npy" in text
    for tag in ("<img src=x", "<svg", "<script>alert", "<b>"):
        assert tag not in text
    assert text.count("<script>") == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("page.pdf", "should end in .html"),
        ("nowhere/page.html", "does not exist"),
        ("there.html", "exists already"),
    ],
)
def test_a_place_where_no_page_can_be_is_refused_before_anything_is_computed(
    refuses, blurred, gentle, tmp_path, name, says
):
    (tmp_path / "there.html").write_text("mine")
    words = ["invert", blurred, "-k", gentle, "-o", tmp_path / "x.tif", "--report", tmp_path / name]
    refuses(*words, code=ExitCode.USAGE, says=says)


def test_a_page_is_of_one_input(refuses, blurred, gray, gentle, tmp_path):
    words = ["invert", blurred, gray, "-k", gentle, "-o", tmp_path / "out", "--report", tmp_path / "page.html"]
    refuses(*words, code=ExitCode.USAGE, says=["is for one input", "there are 2"])


def test_a_name_that_is_no_text_does_not_keep_the_page_from_being_written(tmp_path):
    """Linux lets a name hold any bytes; Python keeps those that are no letters as lone surrogates."""
    write_page(tmp_path / "page.html", "name \udcff λ")
    assert (tmp_path / "page.html").read_bytes() == "name ? λ".encode()


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "richardson-lucy", "--iterations", "3", "--block-size", "20"],
        ["--prior", "tv", "--weight", "1"],
        ["--nonnegative", "--lambda", "0.01"],
    ],
    ids=" ".join,
)
def test_a_page_of_an_estimate_without_an_expected_error_says_why(deconv, microscope, gentle, tmp_path, words):
    page = tmp_path / "page.html"
    done = deconv("invert", microscope, "-k", gentle, "-o", tmp_path / "x.tif", "--report", page, *words)
    assert re.search(r"note: .* predicts no error, so the page shows none", done.stderr)
    text = page.read_text(encoding="utf-8")
    assert "predicts no error, so the page shows none" in text
    for part in ("Expected error", "Predicted error", "Finest detail"):
        assert part not in text


@pytest.fixture
def snapshot(samples_folder, tmp_path):
    """A detail of a blurred photograph, and of the sharp one."""
    paths = [tmp_path / "blurred.png", tmp_path / "sharp.png"]
    for path, name in zip(paths, ("camera_blurred", "camera"), strict=True):
        Image.open(samples_folder / f"{name}.png").crop((60, 30, 156, 126)).save(path)
    return paths


@pytest.mark.parametrize(
    "options", [[], ["--lambda", "1e-3"], ["--method", "richardson-lucy"], ["--prior", "tv", "--weight", "1"]]
)
def test_table_page_and_record_agree_on_the_noise_and_on_the_error_of_the_file(
    deconv, snapshot, samples_folder, tmp_path, options
):
    blurred, sharp = snapshot
    words = ["invert", blurred, "-k", samples_folder / "motion.npy", "--truth", sharp, "-o", tmp_path / "x.png"]
    words += options
    run = deconv(*words, "--json", "--report", tmp_path / "x.html", expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY))
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    difference = np.asarray(Image.open(tmp_path / "x.png"), float) - np.asarray(Image.open(sharp), float)
    error = float(np.sqrt(np.mean(difference**2)))
    assert run.report["actual_error"] == pytest.approx(error, rel=1e-6)
    assert f"{error:.3g} " in run.stderr.replace(")", " ")
    told = f"Compared with the truth it is {error:.2g} of 255"
    if run.report["predicted_error"] is None:
        told = f"{error:.2g} of 255"
    assert told in page
    (sigma,) = run.report["noise_sigma"]
    assert f"noise σ {sigma:.3g} in light" in run.stderr
    assert f"{sigma:.3g} in light" in page
