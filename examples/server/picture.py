"""Takes the picture of the dashboard in the documentation, by Chromium and playwright.

    python examples/server/picture.py http://127.0.0.1:8080/ examples/server/dashboard.png

Start the server and let clients read for five minutes before. ``--dark``, ``--width`` and
``--height`` (in pixels; 0: the whole page) change it.
"""

import argparse
import shutil

from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes a picture of the dashboard.")
    parser.add_argument("url")
    parser.add_argument("file")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1120)
    parser.add_argument("--height", type=int, default=1180)
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": given.width, "height": given.height or 900},
            color_scheme="dark" if given.dark else "light",
            reduced_motion="reduce",
        )
        page.goto(given.url)
        page.wait_for_selector("[data-state=live]")
        # A moment of the charts, so that nothing is half drawn.
        page.wait_for_timeout(4000)
        page.screenshot(path=given.file, full_page=not given.height)
        browser.close()


if __name__ == "__main__":
    main()
