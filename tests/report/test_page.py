"""The page: it says what was done, escapes what is not its own, carries everything, and asks for nothing."""

import base64
import dataclasses
import hashlib
import logging
import re
import sys
from html.parser import HTMLParser

import matplotlib
import pytest
import torch
from browser import needs_browser

from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.kernels.blind.estimate import Candidate, KernelEstimate, Parameter
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.report.page import all_numbers, as_sentence, key_numbers
from deconv_cli.report.page_pictures import draw_pictures
from deconv_cli.report.page_sections import describe_kernel_section
from deconv_cli.report.plots import DARK, LIGHT
from deconv_cli.report.run_record import describe_run
from deconv_cli.report.shown_images import draw_comparison, draw_views
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


def test_the_first_sentences_say_what_with_which_and_where(page):
    text = Reader(page).text
    assert f"{HOSTILE} (1×60×72, uint8) was restored from what the kernel kernels/{HOSTILE} (3×3 taps)" in text
    assert "zeros were taken to lie outside" in text
    assert "λ = 0.01 (in units of σ²max, penalty gradient): chosen by generalized cross-validation in 3 rounds" in text
    assert "Warning: Two rules differ by a factor of 100: gcv takes λ = 0.001 and ml 0.1;" in text
    assert "What lies outside the frame adds little to it from 7 pixels inwards." in text
    assert "88.3 % of the picture is to be trusted then; the rest is hatched" in text
    assert "an error of 2.57 rms is to be expected; the real one is 2.07." in text
    # How deep the edge reaches is in what is predicted for every pixel.
    assert "Trust the outermost" not in text


def test_without_a_choice_the_reason_of_the_settings_is_given(contents):
    text = Reader(contents().render()).text
    assert "λ = 0.01 (in units of σ²max, penalty gradient): given by the user." in text
    assert "Trust the outermost" in text
    for word in ("Truth", "Predicted error", "The choice of λ", "hatch"):
        assert word not in text


def test_a_solver_that_did_not_finish_is_the_first_warning(contents):
    given = contents()
    spent = dataclasses.replace(given.run.reconstruction.solution, status=Status.MAX_ITERATIONS)
    text = Reader(given.with_result(solution=spent).render()).text
    assert "Warning: The solver did not finish: the iterations ran out" in text


def test_a_method_without_lambda_or_assessed_boundary_is_described_too(contents):
    given = contents()
    settings = dataclasses.replace(given.run.reconstruction.settings, prior="tv")
    without = given.with_result(settings=settings, well_posedness=None)
    header, choice = without.header(), given.run.reconstruction.choice
    names = [{name for name, *_ in key_numbers(of.run.reconstruction, of.run.diagnosis)} for of in (given, without)]
    assert names[0] - names[1] == {"Noise gain", "Degrees of freedom", "Resolution"}  # those of the linear inverse
    assert header.chosen == f"There is no λ. Method {choice.method}: {choice.reason}."
    assert "A mistake at the edge may reach through the whole picture" in header.trust


def test_a_boundary_that_loses_modes_is_a_warning(contents):
    given = contents()
    lossy = dataclasses.replace(
        given.run.reconstruction.well_posedness, is_well_posed=False, reason="about 3 modes all but vanish"
    )
    assert "About 3 modes all but vanish." in given.with_result(well_posedness=lossy).header().warnings


@pytest.mark.parametrize("finding", list(ResidualFinding))
def test_the_sentence_about_the_residual_stands_at_the_top(contents, finding):
    given = contents()
    tests = dataclasses.replace(given.run.diagnosis.tests, finding=finding)
    header = given.with_diagnosis(tests=tests).with_result(residual_tests=tests).header()
    is_warning = finding not in (ResidualFinding.FINE, ResidualFinding.INCONCLUSIVE)
    sentence = as_sentence(finding.sentence)
    assert (sentence in header.warnings) is is_warning
    assert (sentence in header.trust) is not is_warning


def test_the_page_warns_of_nothing_that_the_prompt_keeps_silent_about(contents, full_contents):
    given = contents()
    chosen = full_contents().run.reconstruction.lambda_choice
    tests = dataclasses.replace(given.run.diagnosis.tests, finding=ResidualFinding.OVER_SMOOTHED)
    given = given.with_diagnosis(tests=tests).with_result(residual_tests=tests, lambda_choice=chosen)
    warnings = given.header().warnings
    assert [warning.rstrip(".") for warning in warnings] == [
        warning[:1].upper() + warning[1:].rstrip(".") for warning in given.run.reconstruction.warnings
    ]
    assert as_sentence(ResidualFinding.OVER_SMOOTHED.sentence) not in warnings


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


def test_every_picture_and_plot_is_told_in_words_and_numbers(page):
    reader = Reader(page)
    told = [a["alt"] for a in reader.of("img") if a["alt"]]
    pictures = ("Input", "Estimate", "Truth", "Residual", "Predicted error", "Actual error")
    for name in pictures:
        assert any(re.match(rf"{name}: values from \S+ to \S+, mean \S+ in units", alt) for alt in told), name
    assert any("gcv over 9 values of λ from 1e-08 to 1 chooses 0.001" in alt for alt in told)
    assert any("Predicted error 3 on the edge, 2.1 inside" in alt for alt in told)
    assert sum(alt.startswith("scale from ") for alt in told) == len(pictures)
    assert len(reader.of("picture")) == len(reader.of("source")) == 2
    assert all(a["media"] == "(prefers-color-scheme: dark)" for a in reader.of("source"))


def test_every_number_of_the_record_is_in_the_table(full_contents):
    contents = full_contents()
    text = Reader(contents.render()).text
    record = describe_run(contents.run)
    listed = dict(all_numbers(record))
    assert listed["residual.relative"] == repr(record["residual"]["relative"])
    assert listed["border[0].residual_rms"] == repr(record["border"][0]["residual_rms"])
    assert listed["inputs[0].shape"] == "1, 60, 72"
    assert listed["rcond"] == "null"
    for path, value in listed.items():
        assert path in text
        assert " ".join(value.split()) in text
    assert "deconv invert --kernel=k.npy --lambda=0.01 --" in text


def test_channels_and_batches_that_are_not_shown_are_named(contents):
    given = contents(5)
    images = given.data[None].expand(4, -1, -1, -1)
    tensors = dataclasses.replace(given, data=images).with_source(is_picture=False)
    page = tensors.with_result(image=given.run.reconstruction.image[None].expand(4, -1, -1, -1)).render()
    text = Reader(page).text
    assert "Shown: the first of 4 images, the first 3 of 5 channels." in text
    assert "It has a scale of its own." in text
    shown = re.findall(r'aria-label="(Input|Estimate), channel (\d)"', page)
    assert shown == [(name, str(number)) for name in ("Input", "Estimate") for number in (1, 2, 3)]
    plain = Reader(contents(3).render()).text
    assert "Shown:" not in plain
    assert "Both have one scale" in plain


def test_numbers_of_one_channel_of_several_say_of_which(one_by_one):
    text = Reader(one_by_one.render()).text
    own = one_by_one.run.diagnosis.channel + 1
    assert "Each channel was restored by itself: certificate, residual and predicted error are of all of them" in text
    assert f"the choice of λ is that of channel 3, and all else that of channel {own}." in text
    assert "Channel 3: two rules differ by a factor of 100" in text


def test_what_a_residual_says_against_a_channel_is_said_once(one_by_one):
    finding = ResidualFinding.WRONG_KERNEL
    given = one_by_one.with_diagnosis(tests=dataclasses.replace(one_by_one.run.diagnosis.tests, finding=finding))
    channels = [
        dataclasses.replace(part, residual_tests=dataclasses.replace(part.residual_tests, finding=finding))
        for part in given.run.reconstruction.channels
    ]
    warnings = given.with_result(channels=tuple(channels)).header().warnings
    assert [warning for warning in warnings if warning.endswith(f"{finding.sentence}.")] == [
        f"Channel {number}: {finding.sentence}." for number in (1, 2, 3)
    ]


def test_nothing_of_matplotlib_is_left_changed(contents, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # another library may have loaded it
    # Past the mapping's own way, which would load pyplot to settle the backend.
    before = dict(dict.items(matplotlib.rcParams))
    level = logging.getLogger("matplotlib").level
    contents().render()
    assert dict(dict.items(matplotlib.rcParams)) == before
    assert logging.getLogger("matplotlib").level == level
    assert "matplotlib.pyplot" not in sys.modules


def test_plots_have_the_colors_of_their_theme(page):
    reader = Reader(page)
    for theme, other, plots in [
        (LIGHT, DARK, [a["src"] for a in reader.of("img")[-2:]]),
        (DARK, LIGHT, [a["srcset"] for a in reader.of("source")]),
    ]:
        for plot in plots:
            svg = base64.b64decode(plot.partition(",")[2]).decode()
            assert theme.ink in svg
            assert not any(color in svg for color in dataclasses.astuple(other))
            assert "<text" not in svg


def test_the_same_contents_give_the_same_page(contents):
    given = contents()
    assert given.render() == given.render()


def test_a_page_of_a_large_picture_stays_small(full_contents):
    """Noise in three colors is what compresses least."""
    small = full_contents(3)
    generator = torch.Generator().manual_seed(0)
    data, estimate, truth, residual, error = 100 * torch.rand(5, 3, 2048, 2048, generator=generator)
    predicted = small.run.reconstruction.predicted_error
    bands = tuple(dataclasses.replace(predicted.bands[3], distance=at) for at in range(60))
    predicted = dataclasses.replace(predicted, map=error, trusted=error[0] < 50, bands=bands)
    large = dataclasses.replace(small, data=data, truth=truth).with_diagnosis(residual=residual)
    page = large.with_result(image=estimate, predicted_error=predicted).render()
    # The plots of a large kernel and a rugged border take up to 700 000 more than those of here.
    assert len(page.encode()) < 3_250_000
    text = Reader(page).text
    sentence = re.search(r"the pictures of up to 2048 pixels were averaged down to at most (\d+) a side", text)
    assert sentence
    assert 128 <= int(sentence[1]) <= 1024


def test_a_picture_is_compared_with_its_estimate_pixel_by_pixel(contents):
    given = contents()
    images, _ = given.images()
    comparison = draw_comparison(images)
    assert comparison.is_whole
    assert (comparison.before.uri, comparison.after.uri) == tuple(p.uri for p in draw_pictures(images[:2])[0])
    labels = [a["aria-label"] for a in Reader(given.render()).of("div") if a.get("class") == "view"]
    assert labels == ["Input", "Estimate", "Residual"]


def test_of_a_picture_that_is_larger_a_detail_is_compared_and_the_whole_shown_too(full_contents, monkeypatch):
    monkeypatch.setattr("deconv_cli.report.shown_images.MAX_SIDE", 40)
    given = full_contents()
    comparison = draw_comparison(given.images()[0])
    assert (comparison.after.width, comparison.after.height, comparison.is_whole) == (40, 40, False)
    assert comparison.caption == "The 40×40 pixels of 60×72 with most detail."
    rows, columns = find_detail(given.data, 40, 40)
    assert torch.equal(comparison.after.image.values, given.run.reconstruction.image[0, rows, columns])
    assert torch.equal(comparison.after.image.mask, ~given.run.reconstruction.predicted_error.trusted[rows, columns])
    labels = [a["aria-label"] for a in Reader(given.render()).of("div") if a.get("class") == "view"]
    assert labels == ["Input", "Estimate", "Input", "Estimate", "Truth", "Residual", "Predicted error", "Actual error"]


def test_what_has_no_common_scale_or_size_is_not_compared(contents):
    given = contents()
    assert "Before and after" not in given.with_source(is_picture=False).render()
    smaller = given.with_result(image=given.run.reconstruction.image[..., 1:])
    assert draw_comparison(smaller.images()[0]) is None


def test_the_kernel_is_drawn_as_what_becomes_of_a_point(contents):
    given = contents()
    kernel = dataclasses.replace(given.run.kernel, kernel=Kernel.from_tensor(torch.tensor([[0.0, 1.0, 3.0]])))
    section = describe_kernel_section(kernel)
    assert section.picture.image.values.tolist() == [[3.0, 1.0, 0.0]]
    assert (section.origin, section.numbers) == (f"Given: kernels/{HOSTILE}, 1×3 taps.", ())
    mixing = describe_kernel_section(dataclasses.replace(kernel, kernel=Kernel.from_tensor(torch.ones(4, 2, 3, 3))))
    assert mixing.picture.image.caption.startswith("The first of 8 kernels.")


def test_a_kernel_that_was_found_has_its_errors_and_its_rivals(contents):
    candidates = tuple(
        Candidate(family, numbers, misfit)
        for family, numbers, misfit in [("disk", (5.2,), 3.0), ("gaussian", (2.5,), 12.5), ("none", (), 515.0)]
    )
    found = KernelEstimate(True, "disk", (Parameter("RADIUS", 5.2, 0.125),), candidates, 512.0)
    given = contents()
    kernel = dataclasses.replace(given.run.kernel, path="disk:5.2", estimate=found)
    page = dataclasses.replace(given, run=dataclasses.replace(given.run, kernel=kernel)).render()
    text = Reader(page).text
    assert "Found in the picture itself: disk:5.2, 3×3 taps." in text
    for row in ("Family disk", "Radius 5.2 ± 0.12 pixels", "Runner-up gaussian:2.5", "the runner-up 9.5", "blur 512"):
        assert row in text


def test_five_lambdas_stand_side_by_side_and_the_one_taken_is_framed(contents):
    given = contents(3)
    shades = torch.linspace(0, 100, 5)
    views = tuple(
        LambdaView(ratio, (1e-2 * ratio,), shade.expand(3, 8, 8)) for ratio, shade in zip(RATIOS, shades, strict=True)
    )
    page = dataclasses.replace(given, run=dataclasses.replace(given.run, lambda_views=views)).render()
    text = Reader(page).text
    words = ["λ / 100. λ = 0.0001.", "λ / 10. λ = 0.001.", "λ, as taken. λ = 0.01.", "λ × 10. λ = 0.1."]
    assert " ".join([*words, "λ × 100. λ = 1."]) in text
    (framed,) = re.findall(r'<figure class="taken">.*?</figure>', page, re.DOTALL)
    assert words[2] in Reader(framed).text
    estimate = given.images()[0][1]
    assert {(p.image.low, p.image.high) for p, _ in draw_views(views, [estimate])} == {(estimate.low, estimate.high)}
    assert "under five λ" not in given.render()


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_and_nothing_leaves_the_page(page, browse, dark):
    browser, path = browse(page, dark=dark)
    assert browser.run("document.title") == f"{HOSTILE} – deconv invert"
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")
    assert browser.run("document.images.length") > 15
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    plot = browser.run("document.querySelector('picture img').currentSrc")
    assert plot == Reader(page).of("source" if dark else "img")[0 if dark else -2]["srcset" if dark else "src"]
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
    browser.run(
        """(() => {
            const view = document.querySelector('.view'), box = view.getBoundingClientRect();
            const corner = {clientX: box.left, clientY: box.top};
            const turn = {ctrlKey: true, deltaY: -300 * Math.log(2), cancelable: true};
            view.dispatchEvent(new WheelEvent('wheel', {...corner, ...turn}));
        })()"""
    )
    assert {text.partition("scale")[2] for text in browser.run(transforms)} == {"(3)"}
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
    corners = "[...document.querySelectorAll('.pane')].map((p) => p.getBoundingClientRect()).map((b) => [b.x, b.y])"
    first, second = browser.run(corners)
    assert first == second
    assert browser.run("getComputedStyle(document.querySelector('.how')).display") == "inline"
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
    assert browser.messages == []


@needs_browser
def test_without_scripts_before_and_after_stand_side_by_side(page, browse):
    browser, _ = browse(page.replace("<script>", "<script>throw 'none';"))
    first, second = browser.run("[...document.querySelectorAll('.pane')].map((p) => p.getBoundingClientRect().x)")
    assert second > first + 200
    for name in (".cut", ".how"):
        assert browser.run(f"getComputedStyle(document.querySelector('{name}')).display") == "none"


@needs_browser
@pytest.mark.parametrize("width", [480, 1400])
def test_nothing_is_wider_than_the_window(page, browse, width):
    browser, _ = browse(page, width=width)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


@needs_browser
def test_the_watch_over_the_browser_sees_requests_messages_and_dialogs(page, browse):
    """The checker must be able to fail."""
    bad = "<script>alert(3); console.error('wrong'); undefined_name()</script><img src='elsewhere.png'>"
    browser, _ = browse(f"<!doctype html><title>bad</title>{bad}")
    assert browser.dialogs == ["3"]
    assert any(url.endswith("elsewhere.png") for url in browser.requests)
    assert any("wrong" in message for message in browser.messages)
    assert any("Uncaught" in message for message in browser.messages)


@needs_browser
def test_the_policy_stops_what_escaping_might_let_through(page, browse):
    smuggled = "<script>alert(4)</script><img src=x onerror='alert(5)'><img src='http://192.0.2.1/pixel.png'>"
    browser, _ = browse(page.replace("</header>", f"{smuggled}</header>"))
    assert browser.dialogs == []
    assert not any(url.startswith("http") for url in browser.requests)
    assert any("Content Security Policy" in message for message in browser.messages)


def test_errors_are_of_light_where_a_tone_curve_was_undone(full_contents):
    curve = ToneCurve.gamma(2.0, 100)
    whole = full_contents()
    shown = {image.name: image for image in whole.with_result(tone_curve=curve).images()[0]}
    estimate, truth = whole.run.reconstruction.image, whole.truth
    expected = (curve.to_light(estimate) - curve.to_light(truth)).abs()[0]
    torch.testing.assert_close(shown["Actual error"].values, expected, check_dtype=False)
    units = {name: shown[name].unit for name in ("Estimate", "Residual", "Predicted error", "Actual error")}
    of_light = "in units of light, where 100 is white"
    assert units.pop("Estimate") == "in units of the uint8 samples"
    assert set(units.values()) == {of_light}
