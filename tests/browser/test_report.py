"""The report draws in a real browser, in both colour schemes, on a phone and on a desk.

Needs Debian's Chromium: apt-get install chromium. REPORT_SCREENSHOTS=DIR keeps a picture of each.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from fxprune.report import page as pages
from fxprune.report.summary import Subject, summarize
from tests.support.nets import BY_NAME

pytestmark = pytest.mark.slow

ODD = "</script><script>document.title = 'executed'</script><b>a</b>" + "a" * 80
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
SCREENS = [(scheme, width) for scheme in ("light", "dark") for width in (360, 1280)]


def history(groups: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "lr": 0.1 / epoch,
            "train_loss": 2.0 / epoch,
            "train_accuracy": 1 - 1 / (epoch + 1),
            "val_loss": 2.1 / epoch,
            "val_accuracy": 1 - 1 / (epoch + 1),
            "macs": 1000,
            "run_macs": 1000 * epoch,
            "run_macs_dense": 2000 * epoch,
            "step_seconds": 0.01,
            "seconds": 1.0,
            "widths": [max(size - epoch, 1) for size in sizes[:groups]],
            "churn": 0.1 / epoch,
        }
        for epoch in range(1, 13)
    ]


def export() -> dict[str, Any]:
    side = {"params": 10, "macs": 10, "bytes": 10, "latency": 0.001}
    figures = {"bytes": 10, "max_abs_error": 1e-6, "max_rel_error": 1e-7, "tolerance": 2e-5}
    words = {"path": "a.onnx", "reference": "the dense network", "seed": "1", "sha256": "ab" * 32}
    return {
        "onnx": {
            **figures,
            **words,
            "batches": [1, 2, 7],
            "real_examples": 7,
            "compact": side,
            "dense": side,
        }
    }


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of one run, of two, of one that was never trained, and of one by its own metric."""
    net = BY_NAME["resnet_projection"]
    gated = net.gated(policy="cucb", budget="keep=0.5")
    lines = history(len(gated.widths), gated.channels.layout.sizes)
    whole = Subject("a.fxprune", "cucb", "keep=0.5", lines, lines, export(), ["fxprune train"])
    one, bare = summarize(whole, gated), summarize(Subject("new", "cucb", "keep=0.5"), gated)
    scored = [{**line, "metric": "iou", "val_metric": 0.1 * line["epoch"]} for line in lines]
    scored[3] |= dict.fromkeys(("train_loss", "lr", "churn", "val_metric"), float("nan"))
    latency = {"asked": 0.5, "dense": 0.002, "compact": 0.001}
    odd = Subject(ODD, "cucb", "keep=0.5", scored, latency=latency, commands=[ODD])
    folder = tmp_path_factory.mktemp("reports")
    found = {"one": [one], "two": [one, {**one, "title": "b" * 99}], "bare": [bare]}
    found["same"] = [one, one]
    found["odd"] = [summarize(odd, gated)]
    found["odd"][0]["layers"][0]["name"] = "__name__"
    blank = dict.fromkeys(("train_loss", "val_accuracy", "churn"))
    found["nan"] = [summarize(Subject("nan", "cucb", "keep=0.5", [{**lines[0], **blank}]), gated)]
    other = summarize(Subject("odd", "cucb", "keep=0.5", scored), gated)
    found["many"] = [other, *({**one, "title": f"run {index}"} for index in range(6))]
    for name, records in found.items():
        pages.write(folder / f"{name}.html", records)
    return {name: folder / f"{name}.html" for name in found}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield opened
        opened.close()


class Tab:
    """A page of the browser, with what it said and asked for."""

    def __init__(self, browser: Browser, path: Path, scheme: str = "light", width: int = 1280):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        self.page: Page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn=yes]")


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
@pytest.mark.parametrize("name", ["one", "two", "bare", "odd"])
def test_it_draws_without_a_word_and_asks_for_nothing(
    browser: Browser, reports: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    tab = Tab(browser, reports[name], scheme, width)
    if "REPORT_SCREENSHOTS" in os.environ:
        folder = Path(os.environ["REPORT_SCREENSHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        tab.page.screenshot(path=folder / f"{name}-{scheme}-{width}.png", full_page=True)
    assert tab.said == []
    assert [url for url in tab.asked if not url.startswith(("file:", "data:"))] == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    if name != "bare":
        drawn = tab.page.evaluate(
            "[...document.querySelectorAll('canvas')].map(c => "
            "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0))"
        )
        assert drawn
        assert all(drawn)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two", "same"])
def test_a_screen_reader_and_weak_eyes_can_use_it(
    browser: Browser, reports: dict[str, Path], name: str, scheme: str
) -> None:
    tab = Tab(browser, reports[name], scheme)
    tab.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = Axe().run(tab.page)["violations"]
    assert [(entry["id"], [node["html"][:120] for node in entry["nodes"]]) for entry in found] == []


def test_the_keyboard_moves_and_zooms_the_graph(browser: Browser, reports: dict[str, Path]) -> None:
    tab = Tab(browser, reports["one"])
    graph = tab.page.locator("svg.graph")
    first = graph.get_attribute("viewBox")
    turned = "new WheelEvent('wheel', {deltaY: 400, cancelable: true})"
    taken = f"graph => {{ const e = {turned}; graph.dispatchEvent(e); return e.defaultPrevented }}"
    assert not graph.evaluate(taken), "all is in sight: the wheel is the page's"
    assert graph.get_attribute("viewBox") == first
    graph.focus()
    tab.page.keyboard.press("+")
    zoomed = graph.get_attribute("viewBox")
    tab.page.keyboard.press("ArrowDown")
    moved = graph.get_attribute("viewBox")
    assert len({first, zoomed, moved}) == 3
    tab.page.keyboard.press("0")
    assert graph.get_attribute("viewBox") == first


def test_a_layer_lights_up_what_lives_and_dies_with_it(
    browser: Browser, reports: dict[str, Path]
) -> None:
    tab = Tab(browser, reports["one"])
    tab.page.locator("svg.graph g rect.kept").first.hover()
    assert tab.page.locator("svg.graph g.on").count() >= 1
    assert "channels kept" in tab.page.locator("#graph p[aria-live]").inner_text()


def test_the_axis_can_be_macs(browser: Browser, reports: dict[str, Path]) -> None:
    tab = Tab(browser, reports["one"])
    tab.page.get_by_role("button", name="by macs spent").press("Enter")
    assert tab.said == []
    assert tab.page.locator("#training canvas").count() == 2
    pressed = tab.page.get_by_role("button", name="by macs spent").get_attribute("aria-pressed")
    assert pressed == "true"


def test_a_metric_of_ones_own_and_names_that_are_no_markup(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = Tab(browser, reports["odd"]).page
    assert page.title() == f"fxprune report · {ODD}"
    assert page.locator("pre b, h1 b").count() == 0
    tiles = [text.replace("\u00a0", " ") for text in page.locator(".tile").all_inner_texts()]
    assert any("1.200" in text and "iou, validation, after epoch 12" in text for text in tiles)
    assert any("50 %" in text and "asked for 50 %" in text for text in tiles)
    assert page.get_by_text("iou on the validation split").count() == 1
    left, right = page.locator("#widths .name").first.evaluate(
        "e => { const text = e.firstChild, end = text.data.lastIndexOf('_');"
        "return [end - 2, end].map(i => { const r = document.createRange();"
        "r.setStart(text, i); r.setEnd(text, i + 1); return r.getBoundingClientRect().x }) }"
    )
    assert left < right, "an underscore at the end stays there, though names are cut at their head"


def test_runs_look_the_same_in_each_chart_and_metrics_are_not_mixed(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = Tab(browser, reports["many"]).page
    captions = page.locator("#training figcaption").all_inner_texts()
    assert captions[:2] == ["iou on the validation split", "Accuracy on the validation split"]
    styles: dict[str, set[str | None]] = {}
    for entry in page.locator(".legend li").all():
        style = entry.locator("i").get_attribute("style")
        styles.setdefault(entry.inner_text(), set()).add(style)
    own = [style for name, style in styles.items() if not name.endswith(", dense")]
    assert len(own) == 7
    assert all(len(style) == 1 for style in own)
    assert len(set.union(*own)) == 7


def test_what_was_not_measured_is_not_said_to_be_zero(
    browser: Browser, reports: dict[str, Path]
) -> None:
    tab = Tab(browser, reports["nan"])
    assert tab.said == []
    assert "1 epoch, " in tab.page.locator("#subtitle").inner_text()
    assert "No step exchanged a channel" not in tab.page.locator("#choice").inner_text()
    for name in ("by macs spent", "by epoch"):
        tab.page.get_by_role("button", name=name).press("Enter")
        assert tab.page.get_by_text("No epoch has a finite accuracy or loss.").count() == 1
