"""Takes the pictures of README and docs from a real run: python tools/pictures.py fxprune-demo

The folder is what `fxprune demo` wrote. Needs Debian's Chromium and Playwright.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="the folder that `fxprune demo` wrote")
    report = parser.parse_args().demo / "digits.fxprune" / "report.html"
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        page = browser.new_page(viewport={"width": 1200, "height": 740}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-drawn=yes]")
        page.wait_for_timeout(300)
        page.screenshot(path=PICTURES / "report.png")
        browser.close()
    print(PICTURES / "report.png")


if __name__ == "__main__":
    main()
