"""The page: it says first what a person asks, escapes what is not its own, carries everything, and asks for nothing."""

import base64
import dataclasses
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
import torch
from browser import needs_browser

from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.kernels.blind.estimate import Candidate, KernelEstimate, Parameter
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.report.page import describe_origin, draw_kernel
from deconv_cli.report.page_pictures import ScaledImage, draw_picture
from deconv_cli.report.run import describe_run
from deconv_cli.report.shown_images import draw_comparison
from deconv_cli.report.verdict import first_numbers, judge, try_next, varied
from deconv_cli.solvers.solution import Status
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.workflows.lambda_series import RATIOS, LambdaView, find_detail

HOSTILE = "<img src=x onerror=alert(1)>.png"


class Reader(HTMLParser):
    """Lists every element with its attributes, and the texts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self._inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def page(full_contents):
    return full_contents().render()


def verdict(given):
    return judge(given.run.reconstruction, given.run.diagnosis.tests.finding)


def test_the_first_screen_has_a_verdict_three_numbers_and_no_jargon(page):
    first = Reader(page[: page.index('<h2 id="notes">')]).text
    assert "Use this result with care: see the warning below." in first  # two rules for λ differ
    assert (
        "Expected error 2.6 of 255 Root mean square error of the pixels, in gray levels: large errors count more. "
        "Compared with the truth" in first
    )
    assert "Trustworthy 88.3 % of the result; elsewhere, where it is hatched, the error is as large" in first
    assert re.search(r"Finest detail [\d.]+ pixels? Two points that are closer together merge into one", first)
    for word in ("certificate", "σ", "λ", "residual", "rms", "penalty"):
        assert word not in first.lower()
    assert "Two rules differ by a factor of 100: gcv chooses λ = 0.001, ml chooses 0.1;" in Reader(page).text


@pytest.mark.parametrize(
    ("finding", "level", "sentence"),
    [
        (ResidualFinding.FINE, "good", "You can use this result"),
        (ResidualFinding.INCONCLUSIVE, "good", "the input cannot confirm it"),
        (ResidualFinding.OVER_SMOOTHED, "care", "smoother than the input allows"),
        (ResidualFinding.NOISE_FITTED, "care", "some of its detail is noise"),
        (ResidualFinding.WRONG_KERNEL, "bad", "the blur in the input was probably another one"),
        (ResidualFinding.WRONG_BOUNDARY, "bad", "the assumption about the outside of the frame is wrong"),
    ],
)
def test_the_verdict_follows_what_the_residual_shows(contents, finding, level, sentence):
    tests = dataclasses.replace(contents().run.diagnosis.tests, finding=finding)
    given = contents().with_diagnosis(tests=tests).with_result(residual_tests=tests)
    assert verdict(given).level == level
    assert sentence in verdict(given).sentence
    if level != "bad":
        whole = judge(given.run.reconstruction, finding, ("in 3 blocks the solver did not reach its tolerance",))
        assert (whole.level, "see the warning below" in whole.sentence) == ("bad", True)


def test_a_solver_that_did_not_finish_is_the_verdict_and_is_given_more_time(contents):
    given = contents()
    spent = dataclasses.replace(given.run.reconstruction.solution, status=Status.MAX_ITERATIONS)
    given = given.with_result(solution=spent)
    assert "stopped too early" in verdict(given).sentence
    text = Reader(given.render()).text
    assert "Warning: The solver did not finish: the iterations ran out" in text
    assert "Compute longer" in text
    assert "--max-iterations=20000" in text


def test_numbers_have_units_that_a_person_knows(full_contents):
    run = full_contents(size=(8, 20, 24)).run
    result, diagnosis = run.reconstruction, run.diagnosis
    scale = ScaledImage("Estimate", torch.zeros(1), 0.0, 50.0, "", "")
    numbers = first_numbers(result, result.predicted_error, diagnosis, scale, (0.5, 0.2, 0.2))
    assert [name for name, *_ in numbers] == ["Expected error", "Trustworthy", "Finest detail"]
    assert (numbers[0][1], numbers[2][1][-3:]) == ("5.1 %", " µm")
    assert numbers[2][1].count("×") == 2
    without = first_numbers(result, None, dataclasses.replace(diagnosis, resolution=None), scale, None)
    assert [name for name, *_ in without] == ["Error", "Left over"]


def test_commands_change_one_thing_and_write_files_of_their_own(contents):
    run = contents().run
    rerun = (
        "deconv invert --kernel=k.npy --lambda=0.01 --output='a b/x.ome.tif' --error-map=e.tif --force -- 'my file.tif'"
    )
    sharper, smoother, again = try_next(rerun, run.reconstruction, run.kernel, is_picture=True)
    assert shlex.split(sharper[1]) == [
        *("deconv", "invert", "--lambda=0.001", "--output=a b/x_sharper.ome.tif", "--report=a b/x_sharper.html"),
        *("--kernel=k.npy", "--", "my file.tif"),
    ]
    assert "--lambda=0.1 " in smoother[1]
    assert again[1] == rerun
    assert varied("deconv invert --output=x.npy -- y.npy", "free", {"--boundary": "unknown"}).endswith(".html -- y.npy")


def test_a_wrong_kernel_is_looked_for_in_the_picture(contents):
    given = contents()
    tests = dataclasses.replace(given.run.diagnosis.tests, finding=ResidualFinding.WRONG_KERNEL)
    given = given.with_result(residual_tests=tests).with_diagnosis(tests=tests)
    text = Reader(given.render()).text
    assert "Find the blur in the picture itself" in text
    assert "deconv invert --kernel=estimate --output=out_found.tif --report=out_found.html --" in text
    found = KernelEstimate(True, "disk", (), (Candidate("disk", (5.2,), 3.0),), 512.0)
    kernel = dataclasses.replace(given.run.kernel, estimate=found)
    first, *_ = try_next("deconv invert --output=o/x.tif -- y.png", given.run.reconstruction, kernel, is_picture=True)
    assert first[1] == "deconv kernel estimate --free --output=found.npy -- y.png"


def test_what_is_not_its_own_is_text(page):
    reader = Reader(page)
    assert len(reader.of("script")) == 1
    assert not any("onerror" in attributes for _, attributes in reader.elements)
    assert all(attributes["src"].startswith("data:image/") for attributes in reader.of("img"))
    assert "</script><script>alert(2)</script> \"quoted\" 'too' {{ 7 * 7 }} &amp;" in reader.text
    assert "49" not in reader.text.partition("{{")[0][-5:]


def test_nothing_is_fetched_and_no_other_script_runs(page):
    reader = Reader(page)
    (policy,) = [a["content"] for a in reader.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", page))
    assert not any("style" in attributes for _, attributes in reader.elements)


def test_every_picture_is_told_in_words_and_every_number_is_there(page, full_contents):
    reader = Reader(page)
    told = [a["alt"] for a in reader.of("img") if a["alt"]]
    for name in ("Input", "Estimate", "Truth", "Residual", "Predicted error", "Actual error", "Kernel"):
        assert any(re.match(rf"{name}: values from \S+ to \S+, mean \S+", alt) for alt in told), name
    for name, value in describe_run(full_contents().run).items():
        assert f"{name} {' '.join(json.dumps(value, ensure_ascii=False).split())}" in reader.text


def test_channels_and_batches_that_are_not_shown_are_named(contents):
    given = contents(5)
    images = given.data[None].expand(4, -1, -1, -1)
    louder = torch.tensor([1.0, 1, 9, 9, 9])[:, None, None] * given.run.reconstruction.image
    tensors = dataclasses.replace(given, data=images).with_source(is_picture=False)
    page = tensors.with_result(image=louder[None].expand(4, -1, -1, -1)).render()
    assert "Shown: image 1 of 4, 3 of 5 channels." in Reader(page).text
    shown = re.findall(r'aria-label="Estimate, channel (\d)"', page)
    assert shown == ["3", "4", "5"]  # those with the most contrast
    assert "Shown:" not in Reader(contents(3).render()).text


def test_a_picture_is_compared_with_its_estimate_pixel_by_pixel(contents):
    given = contents()
    images = given.images()
    comparison = draw_comparison(images)
    assert comparison.is_whole
    assert (comparison.before.uri, comparison.after.uri) == tuple(draw_picture(image).uri for image in images[:2])
    labels = [a["aria-label"] for a in Reader(given.render()).of("div") if a.get("class") == "view"]
    assert labels == ["Input", "Estimate", "Kernel", "Residual"]


def test_of_a_picture_that_is_larger_a_detail_is_compared_and_the_whole_shown_too(full_contents, monkeypatch):
    monkeypatch.setattr("deconv_cli.report.shown_images.MAX_COMPARED", 40)
    given = full_contents()
    comparison = draw_comparison(given.images())
    assert (comparison.after.width, comparison.after.height, comparison.is_whole) == (40, 40, False)
    assert comparison.caption == "The 40×40 pixels of 60×72 with the most detail."
    rows, columns = find_detail(given.data, 40, 40)
    assert torch.equal(comparison.after.image.values, given.run.reconstruction.image[0, rows, columns])
    assert torch.equal(comparison.after.image.mask, ~given.run.reconstruction.predicted_error.trusted[rows, columns])
    labels = [a["aria-label"] for a in Reader(given.render()).of("div") if a.get("class") == "view"]
    errors = ["Residual", "Predicted error", "Actual error"]
    assert labels == ["Input", "Estimate", "Kernel", "Input", "Estimate", "Truth", *errors]


def test_the_kernel_is_drawn_as_what_becomes_of_a_point(contents):
    given = contents()
    kernel = dataclasses.replace(given.run.kernel, kernel=Kernel.from_tensor(torch.tensor([[0.0, 1.0, 3.0]])))
    assert draw_kernel(kernel).image.values.tolist() == [[3.0, 1.0, 0.0]]
    assert describe_origin(kernel) == f"Given: kernels/{HOSTILE}, 1×3 taps."
    noisy = torch.tensor([[1.0, -1e-5, 0.5]])
    assert draw_kernel(dataclasses.replace(kernel, kernel=Kernel.from_tensor(noisy))).image.low == 0
    mixing = draw_kernel(dataclasses.replace(kernel, kernel=Kernel.from_tensor(torch.ones(4, 2, 3, 3))))
    assert mixing.image.caption.startswith("The first of 8 kernels.")
    candidates = (Candidate("disk", (5.2,), 3.0), Candidate("none", (), 515.0))
    found = KernelEstimate(True, "disk", (Parameter("RADIUS", 5.2, 0.125),), candidates, 512.0)
    origin = describe_origin(dataclasses.replace(given.run.kernel, path="disk:5.2", estimate=found))
    assert origin.startswith("Found in the picture itself: disk:5.2 (radius 5.2 ± 0.12; lengths in pixels")


def test_five_lambdas_stand_side_by_side_each_with_its_command(contents):
    given = contents(3)
    shades = torch.linspace(0, 100, 5)
    views = tuple(
        LambdaView(ratio, (1e-2 * ratio,), shade.expand(3, 8, 8)) for ratio, shade in zip(RATIOS, shades, strict=True)
    )
    page = dataclasses.replace(given, run=dataclasses.replace(given.run, lambda_views=views)).render()
    (shown,) = re.findall(r'<section aria-labelledby="views">.*?</section>', page, re.DOTALL)
    text = Reader(shown).text
    for lam, name in (("0.0001", "much_sharper"), ("0.001", "sharper"), ("0.1", "smoother"), ("1", "much_smoother")):
        assert f"λ = {lam} Copy deconv invert --lambda={lam} --output=out_{name}.tif" in text
    (framed,) = re.findall(r'<figure class="taken">.*?</figure>', page, re.DOTALL)
    assert Reader(framed).text == "λ = 0.01 , as it is"
    assert "Sharper or smoother?" not in given.render()


def test_errors_are_of_light_where_a_tone_curve_was_undone(full_contents):
    curve = ToneCurve.gamma(2.0, 100)
    whole = full_contents()
    shown = {image.name: image for image in whole.with_result(tone_curve=curve).images()}
    estimate, truth = whole.run.reconstruction.image, whole.truth
    expected = (curve.to_light(estimate) - curve.to_light(truth)).abs()[0]
    torch.testing.assert_close(shown["Actual error"].values, expected, check_dtype=False)
    units = {name: shown[name].unit for name in ("Estimate", "Residual", "Predicted error", "Actual error")}
    assert units.pop("Estimate") == "gray levels"
    assert set(units.values()) == {"of light, where 100 is white"}


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_and_nothing_leaves_the_page(page, browse, dark):
    browser, path = browse(page, dark=dark)
    assert browser.run("document.title") == f"{HOSTILE} – deconv invert"
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    sides = "['.result', '.facts'].map((name) => document.querySelector(name).getBoundingClientRect().x)"
    for width in (390, 1280, 1920):
        browser.emulate(width=width)
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        left, right = browser.run(sides)
        assert right == left if width == 390 else right > width / 2
    browser.emulate(media="print")
    assert browser.run("getComputedStyle(document.querySelector('.before')).clipPath") == "none"
    assert browser.run("getComputedStyle(document.querySelector('[data-copy]')).display") == "none"
    assert (browser.requests, browser.messages, browser.dialogs) == ([path.as_uri()], [], [])


@needs_browser
def test_all_pictures_zoom_and_move_together(page, browse):
    browser, _ = browse(page)
    transforms = "[...document.querySelectorAll('.layer')].map((layer) => layer.style.transform)"
    assert set(browser.run(transforms)) == {"translate(0%, 0%) scale(1)"}
    browser.run("document.querySelector('[data-zoom=in]').click()")
    (zoomed,) = set(browser.run(transforms))
    assert zoomed == "translate(-25%, -25%) scale(1.5)"
    press = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
    browser.run(f"document.querySelector('.view').dispatchEvent({press})")
    (moved,) = set(browser.run(transforms))
    assert moved == "translate(-35%, -25%) scale(1.5)"
    browser.run("document.querySelector('[data-zoom=reset]').click()")
    assert set(browser.run(transforms)) == {"translate(0%, 0%) scale(1)"}
    assert browser.run("getComputedStyle(document.querySelector('.hatching')).display") == "block"
    browser.run("document.querySelector('.hatch').click()")
    assert browser.run("getComputedStyle(document.querySelector('.hatching')).display") == "none"
    assert browser.messages == []


@needs_browser
def test_the_line_between_before_and_after_is_dragged(page, browse):
    browser, _ = browse(page)
    cut = "document.querySelector('.cut').value"
    shown = "getComputedStyle(document.querySelector('.before')).clipPath"
    assert (browser.run(cut), browser.run(shown)) == ("50", "inset(0px 50% 0px 0px)")
    browser.run("document.querySelector('.panes').scrollIntoView({block: 'center'})")
    box = browser.run("document.querySelector('.panes').getBoundingClientRect().toJSON()")
    middle = box["y"] + box["height"] / 2
    browser.drag((box["x"] + box["width"] / 2, middle), (box["x"] + box["width"] / 4, middle))
    assert (browser.run(cut), browser.run(shown)) == ("25", "inset(0px 75% 0px 0px)")
    browser.run("document.querySelector('.cut').focus()")
    browser.press("ArrowRight")
    assert (browser.run(cut), browser.run(shown)) == ("26", "inset(0px 74% 0px 0px)")
    # Enlarged, the picture itself is moved, and the line by its handle.
    browser.run("document.querySelector('[data-zoom=in]').click()")
    browser.drag((box["x"] + box["width"] * 0.8, middle), (box["x"] + box["width"] * 0.7, middle))
    assert browser.run(cut) == "26"
    assert browser.run("document.querySelector('.layer').style.transform") != "translate(-25%, -25%) scale(1.5)"
    browser.drag((box["x"] + box["width"] * 0.26, middle), (box["x"] + box["width"] * 0.9, middle))
    assert browser.run(cut) == "90"
