"""Take the pictures of README and docs from the reports of real runs.

    python tools/pictures.py report.png=fxprune-demo/digits.fxprune/report.html \\
        widths.png=resnet20.fxprune/report.html#widths

Each is NAME=REPORT, of the first screen, or NAME=REPORT#SECTION. Needs Debian's Chromium and
Playwright.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def take(browser: Browser, text: str, folder: Path, scheme: str, width: int) -> Path:
    """Take one picture, and return its path.

    Args:
        browser: Chromium.
        text: NAME=REPORT or NAME=REPORT#SECTION.
        folder: where to.
        scheme: "light" or "dark".
        width: of the window, pixels.
    """
    name, _, place = text.partition("=")
    report, _, section = place.partition("#")
    page = browser.new_page(viewport={"width": width, "height": 770}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(Path(report).resolve().as_uri())
    page.wait_for_selector("html[data-drawn=yes]")
    page.wait_for_timeout(300)
    path = folder / name
    if section == "all":
        page.screenshot(path=path, full_page=True)
    elif section:
        page.locator(f"#{section}").screenshot(path=path)
    else:
        page.screenshot(path=path)
    page.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", metavar="NAME=REPORT", help="see above")
    parser.add_argument("--folder", type=Path, default=PICTURES)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1200)
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        for text in given.pictures:
            print(take(browser, text, given.folder, given.scheme, given.width))
        browser.close()


if __name__ == "__main__":
    main()
