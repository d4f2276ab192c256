"""Take a picture of the running chat page after one real turn.

Example: python scripts/screenshot_page.py http://127.0.0.1:3000 page.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def find_browser() -> str | None:
    """An installed Chromium; Playwright's own download is not used."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def screenshot(url: str, out: Path, message: str, width: int, height: int, token: str = "") -> None:
    """Open the page, say `message`, wait for the answer and write a PNG.

    Raises:
        RuntimeError: there is no browser, or the turn fails.
    """
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        raise RuntimeError("no chromium on this machine; install it: apt-get install chromium fonts-nanum")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=1.5, locale="ko-KR"
        )
        if token:
            page.add_init_script(f"sessionStorage.setItem('ohlora.token', {token!r})")
        page.goto(url)
        page.wait_for_selector("#message:enabled")
        page.fill("#message", message)
        page.press("#message", "Enter")
        reply = page.locator(".turn.her:not(.typing)").nth(1)  # the first is the greeting
        reply.or_(page.locator(".toast.trouble")).first.wait_for()
        if page.locator(".toast.trouble").count():
            raise RuntimeError(page.locator(".toast.trouble p").inner_text())
        page.wait_for_timeout(1200)  # the cross-fade
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=out)
        browser.close()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Screenshot of the chat page after one real turn.")
    parser.add_argument("url", help="of the running page, e.g. http://127.0.0.1:3000")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--message", default="안녕! 나는 민수야. 떡볶이를 좋아해.")
    parser.add_argument("--size", default="1280x800", help="WIDTHxHEIGHT (default: %(default)s)")
    parser.add_argument("--token", default="", help="of a server that asks for one")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    try:
        screenshot(options.url, options.out, options.message, width, height, options.token)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
