"""A browser that opens pages; imported only where a test needs it."""

import contextlib
import json
import shutil

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Debian's chromium, which selenium drives."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = map(shutil.which, ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.fail(
            "There is no chromium to test with: `make test` installs it."
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "use-fake-device-for-media-stream",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{argument}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


def resize(browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {**size, "mobile": width < 500}
    )


@contextlib.contextmanager
def opened(browser, path, width):
    """Opens a page in a browser; checks that nothing went wrong in it.

    It is a file, or the address of a page, which may ask its own server.
    """
    address = path if isinstance(path, str) else path.as_uri()
    own = address.partition("#")[0]
    resize(browser, width)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get("about:blank")  # another fragment alone opens no page
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    if own.startswith("http"):
        urls = [url for url in urls if not url.startswith(own)]
    assert {url.split(":")[0] for url in urls} <= {"file", "data", "blob"}
