"""The report draws in a real browser, in both colour schemes, on a phone and on a desk.

Needs Debian's Chromium: apt-get install chromium. REPORT_SCREENSHOTS=DIR keeps a picture of each.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from torch import nn

from fxprune import instrument
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
    found["networks"] = [one, *others()]
    found["small"] = [found["networks"][1]]
    stands = {"epoch": 3, "best": False, "average": False, "stopped": False}
    for kind, at in (("stopped", {"stopped": True}), ("best", {"best": True, "average": True})):
        of: dict[str, Any] = {"network": {**stands, **at}, "of_epochs": 20}
        of["history"] = lines[: 3 if kind == "stopped" else 12]
        found[kind] = [summarize(Subject(kind, "cucb", "keep=0.5", **of), gated)]
    for name, records in found.items():
        pages.write(folder / f"{name}.html", records)
    return {name: folder / f"{name}.html" for name in found}


def others() -> Iterator[dict[str, Any]]:
    """Yield the records of a network of two layers after two epochs, and of a large one."""
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)
    small = instrument(nn.Sequential(*layers), (torch.zeros(2, 3, 9, 9),), budget="keep=0.5")
    lines = [{**line, "widths": [16 - line["epoch"]]} for line in history(1, (16,))[:2]]
    yield summarize(Subject("small", "balance", "keep=0.5", lines), small)
    volume = nn.Conv3d(1, 16, 3), nn.ReLU(), nn.Conv3d(16, 8, 3)
    example = (torch.zeros(2, 1, 9, 9, 9),)
    large = summarize(
        Subject("large", "balance", "keep=0.5", lines, export=export()),
        instrument(nn.Sequential(*volume), example, budget="keep=0.5"),
    )
    sides = {"dense": 2_000_000_000_000, "compact": 999_999_999_999}
    for line in large["epochs"]:
        line |= {"macs": sides["compact"], "run_macs": 10**15 * line["epoch"]}
        line["run_macs_dense"] = 2 * line["run_macs"]
    large["export"]["onnx"]["compact"] = {"params": 999, "macs": 1, "bytes": 1, "latency": 1.5}
    yield {**large, "macs": sides}


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
@pytest.mark.parametrize("name", ["one", "two", "bare", "odd", "small", "networks", "stopped"])
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
@pytest.mark.parametrize("name", ["one", "two", "same", "networks", "stopped"])
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
    for _ in range(99):
        tab.page.keyboard.press("ArrowRight")
    assert graph.evaluate(IN_SIGHT), "it cannot be moved out of sight"
    tab.page.keyboard.press("0")
    assert graph.get_attribute("viewBox") == first


IN_SIGHT = """graph => {
  const box = graph.getBoundingClientRect();
  return [...graph.querySelectorAll("rect, path")].some(shape => {
    const at = shape.getBoundingClientRect();
    return at.left < box.right && at.right > box.left && at.top < box.bottom && at.bottom > box.top;
  });
}"""


def test_the_graph_follows_the_pointer_until_it_is_let_go(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = Tab(browser, reports["one"]).page
    graph = page.locator("svg.graph")
    graph.scroll_into_view_if_needed()
    first = graph.get_attribute("viewBox")
    graph.hover(position={"x": 200, "y": 30})
    page.mouse.down()
    graph.hover(position={"x": 180, "y": 40})
    moved = graph.get_attribute("viewBox")
    assert moved != first
    graph.evaluate("graph => graph.releasePointerCapture(1)")  # as a touch does that scrolls
    graph.hover(position={"x": 150, "y": 60})
    assert graph.get_attribute("viewBox") == moved


@pytest.mark.parametrize("width", [360, 1280])
def test_a_small_network_fills_its_graph(
    browser: Browser, reports: dict[str, Path], width: int
) -> None:
    graph = Tab(browser, reports["small"], width=width).page.locator("svg.graph")
    filled = graph.evaluate(
        """graph => {
          const box = graph.getBoundingClientRect();
          const of = [...graph.querySelectorAll("text, rect, path")];
          const at = of.map(shape => shape.getBoundingClientRect());
          const reach = (from, to) =>
            Math.max(...at.map(a => a[to])) - Math.min(...at.map(a => a[from]));
          return [reach("left", "right") / box.width, reach("top", "bottom") / box.height];
        }"""
    )
    assert min(filled) > 0.5
    assert max(filled) <= 1


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


def test_the_heat_names_the_epochs_that_it_shows(
    browser: Browser, reports: dict[str, Path]
) -> None:
    def texts(name: str) -> list[str]:
        return Tab(browser, reports[name]).page.locator(".heat > text").all_text_contents()

    assert texts("small")[-1] == "epochs 1 to 2"
    assert texts("one")[-2:] == ["epoch 1", "12"]
    assert texts("nan")[-1] == "epoch 1"


# the labels of axes are drawn on a canvas: what it is asked to draw is kept
TEXTS = """
  window.texts = new Set();
  const draw = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
    texts.add(text);
    return draw.call(this, text, ...rest);
  };
"""


def test_networks_that_differ_are_compared_by_their_macs(
    browser: Browser, reports: dict[str, Path]
) -> None:
    tab = Tab(browser, reports["networks"])
    assert tab.said == []
    rows = tab.page.locator("#compare tbody tr").all_inner_texts()
    assert "1.00 T, 50.0 %" in rows[2].replace("\u00a0", " ")
    tab.page.add_init_script(TEXTS)
    tab.page.reload()
    tab.page.get_by_role("button", name="by macs spent").press("Enter")
    drawn = tab.page.evaluate("[...texts]")
    assert "T macs of one example" in drawn
    assert "P macs spent, forward" in drawn
    assert "% of the dense macs" not in drawn


def test_no_figure_is_a_power_of_ten_before_it_has_to_be(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = Tab(browser, reports["networks"]).page
    text = page.locator("main").inner_text()
    assert "1.50\u00a0s" in text
    assert re.findall(r"\de\+", text) == []


def test_it_says_which_network_the_figures_are_of(
    browser: Browser, reports: dict[str, Path]
) -> None:
    stopped, best = (Tab(browser, reports[name]).page for name in ("stopped", "best"))
    assert "3 of 20 epochs" in stopped.locator("#subtitle").inner_text()
    said = stopped.locator(".remark").inner_text()
    assert said.startswith("The training was stopped within epoch 4: ")
    assert best.locator(".remark").count() == 0
    tile = best.locator(".tile").first.inner_text().replace("\u00a0", " ")
    assert tile == (
        "75.0 %\n"
        "accuracy, validation, of epoch 3, the best with the final channels, "
        "of an average of weights"
    )


# the colour of most pixels of the first chart that have one
GRID = """() => {
  const canvas = document.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const count = new Map();
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] < 255) continue;
    const parts = [...data.slice(at, at + 3)].map(v => v.toString(16).padStart(2, "0"));
    const code = "#" + parts.join("");
    count.set(code, (count.get(code) || 0) + 1);
  }
  return [...count].sort((a, b) => b[1] - a[1])[0][0];
}"""


# two frames later, when what a change of the colours redraws is there
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def test_it_can_be_printed_and_shown_in_few_colours(
    browser: Browser, reports: dict[str, Path]
) -> None:
    page = Tab(browser, reports["one"], "dark").page
    assert page.evaluate(GRID) == "#36414f"
    page.emulate_media(media="print", color_scheme="light")
    page.evaluate(DRAWN)
    assert page.evaluate(GRID) == "#d5dae1"
    page.emulate_media(media="screen", forced_colors="active")
    bar = page.locator("#widths .bar i").first
    assert bar.evaluate("bar => getComputedStyle(bar).backgroundColor") == "rgb(31, 95, 208)"


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
