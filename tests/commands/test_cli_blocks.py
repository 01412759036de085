"""`deconv invert` in blocks: planned without writing, told like any run, gone on with, and refused where it must be."""

import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import deconv_cli
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io import read_image
from deconv_cli.report import block_page


@pytest.fixture
def large(tmp_path):
    draw = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(255 * torch.rand(1, 1, 10, 9, generator=draw), size=(80, 72))[0]
    y = deconv_cli.forward(picture, deconv_cli.make_kernel("box:3"), boundary="reflect")
    np.save(tmp_path / "large.npy", (y[0] + torch.randn(y[0].shape, generator=draw)).numpy())
    return tmp_path / "large.npy"


def words(large, *more):
    target = large.with_name("out.npy")
    settings = ["--defaults", "picture", "--lambda", "0.1", "--noise", "white", "--block-size", "40"]
    return ["invert", large, "-k", "box:3", "-o", target, *settings, *more]


def test_a_run_that_is_interrupted_says_how_to_go_on(deconv, large, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("deconv_cli.blocks.invert_blocks.BlockRun.finish", interrupted)
    run = deconv(*words(large), expect=ExitCode.INTERRUPTED)
    assert "0 finished blocks are kept; run the same command with --resume to continue" in " ".join(run.stderr.split())


def test_a_plan_writes_nothing_and_the_run_keeps_to_it(deconv, large):
    plan = deconv(*words(large, "--dry-run", "--json")).report
    assert plan["plan"]["blocks"] == 4
    assert plan["output"]["bytes"] == 80 * 72 * 4
    assert [path.name for path in large.parent.iterdir()] == ["large.npy"]
    report = deconv(*words(large, "--json")).report
    assert (report["warnings"], report["doubts"], report["blocks"]["trusted_share"]) == ([], [], None)
    assert report["residual"]["relative"] == report["blocks"]["residual"]
    assert report["solver"]["certificate"] == report["blocks"]["certificate"]
    assert report["plan"] == plan["plan"]
    assert report["seam"]["measured"] <= report["seam"]["predicted"] <= 1e-3
    data, kernel = torch.from_numpy(np.load(large))[None], deconv_cli.make_kernel("box:3")
    whole = deconv_cli.invert(data, kernel, defaults="picture", lam=0.1, noise="white").image[0].numpy()
    found = np.load(report["output"]["path"])
    alone = ["--noise=white", "--lambda=0.1", "--defaults=picture", "--json", "-o", large.with_name("whole.npy")]
    of_whole = deconv("invert", large, "-k", "box:3", *alone, expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY)).report
    for name in ("whole.npy", "whole.npy.json"):
        large.with_name(name).unlink()
    same = ("dimensions", "boundary", "boundary_reason", "light", "light_reason", "tone_curve", "prior", "spacing")
    assert {name: report[name] for name in same} == {name: of_whole[name] for name in same}
    assert report["residual"]["absolute"] == pytest.approx(of_whole["residual"]["absolute"], rel=1e-3)
    assert np.abs(found - whole).max() <= report["seam"]["predicted"] * float(data.max() - data.min())
    again = deconv(*words(large, "--dry-run"))  # writes nothing, so that nothing is in its way
    assert "needs --force" in " ".join(again.stderr.split())
    for going_on in (["--resume"], ["--block-range", "2/3"]):
        told = deconv(*words(large, *going_on, "--json"))
        assert "out.npy' is complete already" in " ".join(told.stderr.split())
        assert told.report["blocks"] == report["blocks"]
    assert sorted(path.name for path in large.parent.iterdir()) == ["large.npy", "out.npy", "out.npy.json"]


def test_blocks_of_another_size_than_asked_for_are_explained(deconv, large):
    tiff = words(large, "--block-range", "1/1")  # jobs that share the blocks keep to them
    tiff[tiff.index("-o") + 1] = large.with_name("out.tif")
    sentence = "blocks have 80×72 samples instead of the 40×40 of --block-size, because 'out.tif' is written in whole"
    assert sentence in deconv(*tiff, "--dry-run").stderr
    done = deconv(*tiff, "--json")
    assert "the picture is one block of 80×72; nothing is cut" in " ".join(done.stderr.split())
    assert done.stderr.count(sentence) == sum(sentence in note for note in done.report["notes"]) == 1


@pytest.mark.parametrize("options", [["out.npy", "--block-size", "100"], ["out.tif", "--block-size", "40"]])
def test_a_picture_that_one_block_covers_is_restored_as_a_whole(deconv, large, options, monkeypatch):
    target = large.with_name(options[0])
    line = ["invert", large, "-k", "box:3", "--defaults", "picture", "--noise", "white", "-o", target, *options[1:]]
    planned = deconv(*line, "--dry-run", "--json")
    note = "note: one block, of whole tiles or chunks, covers the picture, so it is restored as a whole"
    assert note in " ".join(planned.stderr.split())
    assert planned.report["plan"]["blocks"] == 1
    assert {axis: planned.report["plan"]["core"][axis] for axis in "YX"} == {"Y": 80, "X": 72}
    assert (planned.report["dry_run"], planned.report["planned"][0]["output"]) == (True, str(target))
    assert planned.report["expected_time_s"] > 0
    monkeypatch.delattr("deconv_cli.blocks.invert_blocks.plan_blocks")
    done = deconv(*line, "--json")
    assert note in " ".join(done.stderr.split())
    assert "plan" not in done.report


def test_one_block_of_a_file_of_a_folder_makes_the_folder_of_the_output(deconv, large):
    folder = large.with_name("many")
    folder.mkdir()
    for name in "ab":
        np.save(folder / f"{name}.npy", np.load(large))
    deconv("invert", folder, "-k", "box:3", "--lambda", "0.01", "-o", large.with_name("out"), "--block-size", "500")


def test_one_block_neither_forgets_an_earlier_run_nor_leaves_its_files(deconv, refuses, large):
    line = words(large)
    deconv(*line, "--block-range", "1/2")
    line[line.index("--block-size") + 1] = "500"
    refuses(*line, code=ExitCode.USAGE, says="an earlier run for")
    deconv(*line, "--force")
    assert not list(large.parent.glob(".*.blocks"))


def test_one_block_that_is_complete_is_not_restored_again(deconv, large):
    line = words(large)
    line[line.index("--block-size") + 1] = "500"
    deconv(*line, "--resume")
    assert "is complete already" in deconv(*line, "--resume").stderr


def with_extras(large, *more):
    """Ask for all that is made of blocks besides the estimate."""
    names = {"--error-map": "map.npy", "--trust-mask": "mask.npy"}
    return words(large, *(word for option, name in names.items() for word in (option, large.with_name(name))), *more)


def test_the_error_and_the_mask_come_from_blocks(deconv, large):
    done = deconv(*with_extras(large, "--json"))
    expected = done.report["predicted_error"]
    assert expected["sampled_from"] == "1 piece of 80×72 samples, and the detail of all blocks"
    error_map, mask = np.load(large.with_name("map.npy")), np.load(large.with_name("mask.npy"))
    assert np.sqrt(np.square(error_map.astype(float)).mean()) == pytest.approx(expected["root_mean_square"], rel=1e-5)
    assert (mask == 255).mean() == pytest.approx(expected["trusted_share"])
    assert "by 1 piece of 80×72 samples" in " ".join(done.stderr.split())
    assert "--error-map=" in done.report["rerun"]


def test_a_prior_that_blocks_cannot_take_is_named_where_the_whole_does_not_fit(refuses, large):
    words = ["invert", large, "-k", "box:3", "-o", large.with_name("o.npy"), "--prior", "tv"]
    says = ["needs about", "It cannot be cut into blocks: prior tv needs the whole image"]
    refuses(*words, "--max-memory", "100kB", code=ExitCode.INPUT_REFUSED, says=says)


def test_a_truth_is_compared_with_a_whole_picture(refuses, large):
    refuses(*words(large, "--truth", large), code=ExitCode.USAGE, says="restored in blocks; leave --truth out")


@pytest.mark.exhaustive  # tests/report has pages of pictures that are small
def test_the_page_comes_from_blocks(deconv, large, monkeypatch):
    page = large.with_name("page.html")
    line = with_extras(large, "--report", page)
    planned = deconv(*line, "--dry-run")
    assert "map.npy" in planned.stderr

    def is_ended(run, pieces):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(block_page, "render_block_page", is_ended)
        deconv(*line, expect=ExitCode.INTERRUPTED)
    deconv(*line, "--resume")
    text = page.read_text(encoding="utf-8")
    assert "It was restored in 4 blocks" in text
    assert "Pixel by pixel: rows 1 to 80, columns 1 to 72." in text
    assert text.count('class="comparison') == 1
    for word in ("Seams", "Expected error", "Sharper or smoother?"):
        assert word in text


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--trust-mask", "mask.png"], "cannot be written by parts"),
        (["--block-size", "40,40,40"], "one for each of 2 axes"),
        (["--block-range", "3/2"], "--block-range must be i/N"),
    ],
)
def test_what_has_no_place_in_blocks_is_refused(deconv, large, more, sentence):
    done = deconv(*words(large, *more), expect=ExitCode.USAGE)
    assert sentence in " ".join(done.stderr.split())


def test_what_blocks_cannot_take_is_restored_as_a_whole_where_that_fits(deconv, tmp_path):
    draw = torch.Generator().manual_seed(0)
    np.save(tmp_path / "y.npy", torch.rand(1, 60, 60, generator=draw).numpy())
    np.save(tmp_path / "w.npy", torch.rand(1, 1, 2, 2, generator=draw).numpy())
    layer = ["invert", tmp_path / "y.npy", "-k", tmp_path / "w.npy", "--stride", "2", "--padding", "valid"]
    layer += ["-o", tmp_path / "x.npy", "--lambda", "0.1"]
    deconv(*layer, "--max-memory", "3MiB", "--quiet")  # less than what is small at a glance
    done = deconv(*layer, "--block-size", "16", "--force", expect=ExitCode.USAGE)
    assert "blocks can undo plain convolutions only" in " ".join(done.stderr.split())


def test_a_file_that_is_read_as_a_whole_is_refused(deconv, gray, tmp_path):
    done = deconv("invert", gray, "-k", "box:3", "-o", tmp_path / "x.tif", "--dry-run", expect=ExitCode.USAGE)
    assert "can only be read as a whole" in " ".join(done.stderr.split())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_where_no_run_was_begun_there_is_nothing_to_continue(deconv, gray, tmp_path, suffix):
    y = tmp_path / f"y.{suffix}"
    Image.open(gray).save(y)
    words = ["invert", y, "-k", "box:3", "--lambda", "0.1", "-o"]
    told = " ".join(deconv(*words, tmp_path / "x.tif", "--resume").stderr.split())
    assert f"there is no earlier run to resume for '{tmp_path / 'x.tif'}', so it is restored as a whole" in told
    assert "blocks" not in told
    deconv(*words, tmp_path / "whole.tif")
    assert np.array_equal(read_image(tmp_path / "x.tif").values, read_image(tmp_path / "whole.tif").values)
    again = deconv(*words, tmp_path / "x.tif", "--resume", expect=ExitCode.USAGE)
    assert "exists already" in " ".join(again.stderr.split())


def test_a_memory_limit_is_obeyed_and_recorded(deconv, gray, gentle, tmp_path):
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif", "--force"]
    report = deconv(*words, "--json", "--max-memory", "1.5GiB").report
    assert f"--max-memory={3 * 2**29}" in shlex.split(report["rerun"])
    assert not any(word.startswith("--max-memory") for word in shlex.split(deconv(*words, "--json").report["rerun"]))
    done = deconv(*words, "--max-memory", "20kB", expect=ExitCode.INPUT_REFUSED)
    assert "more than the 19.53 KiB that --max-memory allows" in " ".join(done.stderr.split())
    done = deconv(*words, "--max-memory", "plenty", expect=ExitCode.USAGE)
    assert "must be like 8GiB" in " ".join(done.stderr.split())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_the_system_does_not_give_is_said_in_a_sentence(
    refuses, gray, gentle, tmp_path, monkeypatch, error
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("deconv_cli.commands.input_files.expand", fails)
    monkeypatch.setattr("deconv_cli.workflows.pipeline.Pipeline.__init__", fails)
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif"]
    refuses(*words, code=ExitCode.INPUT_REFUSED, says="no memory left for this")


def test_a_picture_that_is_read_as_a_whole_is_told_of_formats_that_are_cut(refuses, gray, gentle, tmp_path):
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif", "--max-memory", "20kB"]
    says = ["--max-memory", "It cannot be cut into blocks:", "can only be read as a whole", "convert it to TIFF (.tif)"]
    refuses(*words, code=ExitCode.INPUT_REFUSED, says=says)
