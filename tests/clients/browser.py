"""Runs in .venv-clients: uses a page in Chromium as a user does, and prints a JSON list of what it then shows.

The variable ``STEPS`` is a JSON list of address, token and button.
"""

from __future__ import annotations

import json
import os

from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

if __name__ == "__main__":
    shown = []
    with sync_playwright() as playwright:
        options = {"executable_path": os.environ["CHROMIUM"], "args": ["--no-sandbox", "--no-proxy-server"]}
        with playwright.chromium.launch(**options) as browser:
            for address, token, button in json.loads(os.environ["STEPS"]):
                page = browser.new_page()
                page.set_default_timeout(120_000)  # milliseconds
                page.goto(address)
                page.fill("#token", token)
                page.click(f"#{button}")
                page.wait_for_function("output.textContent !== ''")
                shown.append(page.text_content("#output"))
                page.close()
    print(json.dumps(shown))
