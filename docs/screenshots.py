"""The explorer's pictures, and its latency: `python -m docs.screenshots`.

It serves `sim-small`, moves its sliders in chromium, and writes
`docs/explore.png` (1280 pixels wide) and `docs/explore-phone.png` (380).
"""

import argparse
import base64
import io
import re
import shutil
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import soundfile
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.explorer.clips import Clips
from speechbrain_sim.explorer.command import served
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.inference import SmoothInfoMax

HERE = Path(__file__).parent
#: name, width, scheme and how many pieces stand side by side
PICTURES = [("explore", 1280, "light", 1), ("explore-phone", 380, "dark", 2)]
#: releases that are timed, of a recording of so many samples
RELEASES, SHORT = 20, 10240
SPAN = "0.62", "1.12"


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser("screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder")
    return parser


def box(folder):
    """Returns an Engine with the model in the box, and a short recording."""
    model = SmoothInfoMax.from_pretrained("sim-small")
    short = folder / "short.wav"
    soundfile.write(
        short, read_audio(model.examples[0], 4800, 4800 + SHORT), 16000
    )
    return Engine({"sim-small": model}, Clips([*model.examples, short]))


@contextmanager
def chromium():
    """Opens a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    service = Service(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    yield browser
    browser.quit()


def open_page(browser, address, width, scheme):
    """Opens the page in a width and a colour scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1}
    size["mobile"] = width < 500
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(address)
    idle(browser)


def idle(browser):
    """Waits until the sound of the last change can be played."""
    column = "#compare .column[aria-busy=false]"
    WebDriverWait(browser, 60, 0.02).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, column)
    )
    time.sleep(0.3)


def press(browser, selector, *keys):
    """Types into an element; returns its page's sentence on the latency."""
    browser.find_element(By.CSS_SELECTOR, selector).send_keys(*keys)
    idle(browser)
    return browser.find_element(By.CSS_SELECTOR, ".latency").text


def change(browser):
    """Marks a span, sets a dimension in it, and swaps others everywhere."""
    press(browser, "#swap", *4 * [Keys.ARROW_RIGHT])
    for selector, text in zip(("#from", "#to"), SPAN, strict=True):
        press(browser, selector, text, Keys.TAB)
    browser.find_element(By.CSS_SELECTOR, "#varying button").click()
    for _ in range(4):
        press(browser, "#set", Keys.ARROW_RIGHT)
    browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")


def latencies(browser, address):
    """Returns milliseconds from release to sound, as the page states them."""
    open_page(browser, address, 1280, "light")
    choice = Select(browser.find_element(By.ID, "clip"))
    choice.select_by_index(2)
    idle(browser)
    keys = RELEASES * [Keys.ARROW_RIGHT]
    found = [press(browser, "#interpolate", key) for key in keys]
    return [int(re.search(r"(\d+) ms from", text)[1]) for text in found]


def picture(browser, pieces):
    """Returns the whole page as an image, cut into pieces side by side."""
    sizes = "return [innerWidth, document.body.scrollHeight]"
    width, height = browser.execute_script(sizes)
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    whole = Image.open(io.BytesIO(base64.b64decode(shot["data"])))
    whole = whole.convert("RGB")
    cut = browser.execute_script(
        "return document.getElementById('change-title').offsetTop - 16"
    )
    ends = [0, cut, height] if pieces == 2 else [0, height]
    tall = max(b - a for a, b in zip(ends, ends[1:], strict=False))
    gap = 24 * (pieces - 1)
    sheet = Image.new(
        "RGB", (width * pieces + gap, tall), whole.getpixel((1, 1))
    )
    for i, (top, bottom) in enumerate(zip(ends, ends[1:], strict=False)):
        sheet.paste(whole.crop((0, top, width, bottom)), (i * (width + 24), 0))
    return sheet


def main(argv=None):
    """Writes the pictures, and prints the latency."""
    out = make_parser().parse_args(argv).out
    with (
        tempfile.TemporaryDirectory() as folder,
        served(box(Path(folder)), "sim-small") as address,
        chromium() as browser,
    ):
        for name, width, scheme, pieces in PICTURES:
            open_page(browser, address, width, scheme)
            change(browser)
            sheet = picture(browser, pieces).quantize(128)
            sheet.save(out / f"{name}.png", optimize=True)
            print(f"{name}.png: {(out / f'{name}.png').stat().st_size} bytes")
        found = latencies(browser, address)
    print(
        f"{statistics.median(found):.0f} ms from release to sound, the median "
        f"of {len(found)} ({min(found)} to {max(found)}), 0.64 s, sim-small"
    )


if __name__ == "__main__":
    main()
