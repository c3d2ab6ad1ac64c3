"""The report's page, looked at and operated in a real browser."""

import base64
import hashlib
import io
import json
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.plots import plot_lines
from speechbrain_sim.report.page import (
    Explorer,
    Figure,
    Gap,
    Section,
    Stop,
    Table,
    write_page,
)
from speechbrain_sim.report.style import mel_png
from tests.browser.conftest import opened

SYSTEMS = ["SIM", "GIM"]
LAYERS = ["module1", "module2"]
EVIL = "</script><script>document.title = 'evil'</script><b>|"
SUMMARY = Table("Both", "In percent.", ["system", "accuracy"], [["SIM", "7"]])


def tone(pitch, samples=10240):
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(samples) / 16000)


def walk(title, system, layer, pitch):
    stops = [Stop(f"alpha {i / 2}", tone(pitch + 300 * i)) for i in range(3)]
    return Explorer(title, f"{system} {layer}", stops, system, layer)


def make_sections():
    walks = [
        walk("Walk", system, layer, 300 + 1000 * i + 2000 * k)
        for i, system in enumerate(SYSTEMS)
        for k, layer in enumerate(LAYERS)
    ]
    evil = [Stop(EVIL, tone(100, 4000)), Stop("other", tone(200))]
    partly = [
        walk("Partly", "SIM", "module1", 555),
        walk("Partly", "GIM", "module2", 555),
    ]
    plots = [
        Figure(f"Of {name}", "Two.", "plots/lines", "lines", name)
        for name in SYSTEMS
    ]
    wide = Table(EVIL, "", ["word" * 9] * 9, [["1.0 ± 0.1"] * 9])
    return [
        Section("walks", "Walks", "They go up.", [*walks, wide]),
        Section(
            "others",
            "Longwordswithoutspaces" * 9,
            "See.",
            [
                Explorer("Always", "", evil),
                *partly,
                walk("Only SIM", "SIM", None, 777),
                Gap("Only SIM", "GIM has no prior.", "GIM"),
                *plots,
            ],
        ),
    ]


def write(folder, sections, systems=SYSTEMS):
    summary = Section("summary", "Summary", "It works.", [SUMMARY])
    write_page(folder, "Report", "A note.", [summary, *sections], systems)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    plot_lines({"a": ([0, 1], [0, 1])}, "", "", "", folder / "plots/lines")
    write(folder, make_sections())
    return folder


@pytest.fixture(params=[360, 1280])
def page(browser, report, request):
    with opened(browser, report / "report.html", request.param):
        yield browser


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def visible(page, selector):
    found = page.find_elements(By.CSS_SELECTOR, selector)
    return [element for element in found if element.is_displayed()]


def choose(page, value):
    labels = visible(page, ".choice label")
    next(label for label in labels if label.text == value).click()


def stops(explorer):
    """Moves through an explorer; what is to be heard and seen at each stop."""

    def get(selector, attribute):
        found = explorer.find_element(By.CSS_SELECTOR, selector)
        return found.get_dom_attribute(attribute)

    slider = explorer.find_element(By.CSS_SELECTOR, "[type=range]")
    slider.send_keys(Keys.HOME)
    for _ in range(1 + int(get("[type=range]", "max"))):
        yield SimpleNamespace(
            audio=get("audio", "src"),
            waveform=get("path", "d"),
            mel=get(".mel", "src"),
            spoken=get("[type=range]", "aria-valuetext"),
            label=explorer.find_element(By.CSS_SELECTOR, "output").text,
        )
        slider.send_keys(Keys.ARROW_RIGHT)


def wait(page, condition):
    return WebDriverWait(page, 5, 0.02).until(lambda _: condition())


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_every_stop_has_its_own_sound_and_pictures(page):
    found = []
    for system in SYSTEMS:
        choose(page, system)
        for layer in LAYERS:
            choose(page, layer)
            assert find(page, ".about").text == f"{system} {layer}"
            found += stops(find(page, "#explorer-0"))
    labels = ["alpha 0.0", "alpha 0.5", "alpha 1.0"] * 4
    assert [stop.label for stop in found] == labels
    assert [stop.spoken for stop in found] == labels
    for kind in ("audio", "waveform", "mel"):
        assert len({digest(getattr(stop, kind)) for stop in found}) == 12


def test_players_load_the_sounds(page):
    for explorer in visible(page, ".explorer"):
        player = explorer.find_element(By.CSS_SELECTOR, "audio")
        for stop in stops(explorer):
            wav = base64.b64decode(stop.audio.split(",")[1])
            samples, rate = soundfile.read(io.BytesIO(wav))
            wait(page, partial(player.get_property, "duration"))
            seconds = player.get_property("duration")
            assert rate == 16000
            assert seconds == pytest.approx(len(samples) / rate, abs=1e-3)


def test_waveform_is_that_of_the_samples(page, report):
    (path,) = report.glob("audio/000-*.wav")
    samples, _ = soundfile.read(path, dtype="int16")
    columns = samples.reshape(640, -1)
    drawn = find(page, "#explorer-0 path").get_dom_attribute("d")
    points = [int(y) for y in re.findall(r" (-?\d+)", drawn)]
    expected = [*columns.max(1), *columns.min(1)[::-1]]
    assert len(points) == 2 * 640
    error = np.abs(np.array(points) - (100 - np.array(expected) / 327.68))
    assert error.max() <= 0.5


def test_switch_shows_the_other_system_at_the_same_position(page):
    def headings():
        return {h.text.split("\n")[0] for h in visible(page, "h3")}

    def first():
        audio = find(page, "#explorer-0 audio").get_dom_attribute("src")
        slider = find(page, "#explorer-0 [type=range]")
        return slider.get_property("value"), digest(audio)

    find(page, "#explorer-0 [type=range]").send_keys(Keys.ARROW_RIGHT)
    assert {"Walk SIM", "Only SIM SIM", "Of SIM SIM"} <= headings()
    (sim,) = visible(page, "#explorer-3")
    place, audio = first()
    choose(page, "GIM")
    assert {"Walk GIM", "Only SIM GIM", "Of GIM GIM"} <= headings()
    assert not {"Walk SIM", "Only SIM SIM", "Of SIM SIM"} & headings()
    assert not sim.is_displayed()
    assert "GIM has no prior." in find(page, "main").text
    assert (place, "1") == ("1", first()[0]) and audio != first()[1]
    message = find(page, "#explorer-2 .missing")
    assert message.text == "There are no sounds of module1 for GIM."
    assert not find(page, "#explorer-2 .stage").is_displayed()
    choose(page, "SIM")
    assert first() == (place, audio)
    assert not message.is_displayed()


def test_keyboard_reaches_switch_slider_and_player(page):
    reached = []
    while "audio" not in reached:
        assert len(reached) < 30
        ActionChains(page).send_keys(Keys.TAB).perform()
        focus = page.switch_to.active_element
        kind = focus.get_property("type") or focus.tag_name
        if kind == "radio":
            kind = focus.get_property("name")
            ring = focus.find_element(By.XPATH, "following-sibling::span")
        else:
            ring = focus
        if kind != "audio":  # it draws its own
            assert ring.value_of_css_property("outline-style") == "solid"
        reached.append(kind)
        if kind in ("system", "explorer-0-layer", "range"):
            ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    order = ["system", "explorer-0-layer", "range", "audio"]
    assert [kind for kind in reached if kind in order] == order
    about = find(page, "#explorer-0 .about").text
    assert about == "GIM module2"
    assert find(page, "#explorer-0 output").text == "alpha 0.5"


def test_everything_is_labelled(page):
    for element in page.find_elements(By.CSS_SELECTOR, "input"):
        assert page.execute_script("return arguments[0].labels[0]", element)
    for element in visible(page, "img, svg, audio"):
        assert element.accessible_name
    assert find(page, "output").get_dom_attribute("aria-live") == "polite"
    for table in page.find_elements(By.CSS_SELECTOR, "table"):
        assert table.find_element(By.CSS_SELECTOR, "caption")
        assert table.find_elements(By.CSS_SELECTOR, "th[scope=col]")
        assert table.find_elements(By.CSS_SELECTOR, "th[scope=row]")
    for link in page.find_elements(By.CSS_SELECTOR, "nav a"):
        assert find(page, link.get_dom_attribute("href")).tag_name == "h2"


def test_nothing_overflows(page):
    check_width(page)


def check_width(page):
    """Checks that nothing reaches beyond the window, but what scrolls."""
    wide, width = page.execute_script(
        """
        const width = document.documentElement.clientWidth;
        const wide = [...document.querySelectorAll("body *")].filter((e) =>
          !e.closest(".scroll *") && e.getBoundingClientRect().right > width);
        return [wide.map((e) => e.outerHTML.slice(0, 99)), width];
        """
    )
    assert wide == []
    assert page.execute_script("return document.body.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page, scheme):
    check_contrast(page, scheme)


def check_contrast(page, scheme):
    """Checks that all text has the contrast of WCAG's AA."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    pairs = page.execute_script(
        """
        const ground = (e) => {
          const colour = getComputedStyle(e).backgroundColor;
          const clear = colour === "rgba(0, 0, 0, 0)";
          return clear ? ground(e.parentElement) : colour;
        };
        return [...document.querySelectorAll("body *")]
          .filter((e) => e.checkVisibility() && [...e.childNodes]
            .some((node) => node.nodeType === 3 && node.data.trim()))
          .map((e) => [getComputedStyle(e).color, ground(e), e.outerHTML]);
        """
    )
    assert len(pairs) > 40
    for ink, ground, html in pairs:
        light, dark = sorted(map(luminance, (ink, ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground, html[:99])
    paper = find(page, "body").value_of_css_property("background-color")
    assert (luminance(paper) < 0.1) == (scheme == "dark")


def luminance(colour):
    """Relative luminance as in WCAG 2, of e.g. `rgb(0, 12, 255)`."""
    share = np.array(re.findall(r"\d+", colour)[:3], float) / 255
    linear = np.where(
        share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_sounds_play_as_the_slider_moves_only_if_wanted(page):
    explorer = find(page, "#explorer-0")
    slider = explorer.find_element(By.CSS_SELECTOR, "[type=range]")
    page.execute_script(
        """
        window.played = 0;
        document.addEventListener("play", () => window.played++, true);
        """
    )
    slider.send_keys(Keys.ARROW_RIGHT)
    find(page, "#play").click()
    slider.send_keys(Keys.ARROW_RIGHT)
    wait(page, lambda: page.execute_script("return window.played"))
    assert page.execute_script("return window.played") == 1
    choose(page, "GIM")  # to compare, the same position again
    wait(page, lambda: page.execute_script("return window.played") == 2)


def test_html_in_texts_stays_text(page):
    assert page.title == "Report"
    assert find(page, "#explorer-1 output").text == EVIL
    assert find(page, "#explorer-0 ~ .item caption").text == EVIL
    assert page.find_elements(By.CSS_SELECTOR, "main b") == []


def test_one_system_needs_no_switch(browser, tmp_path):
    write(
        tmp_path,
        [Section("s", "S", "", [walk("Walk", "A", None, 500)])],
        systems=["A"],
    )
    browser.get((tmp_path / "report.html").as_uri())
    assert visible(browser, ".explorer audio")
    assert visible(browser, "fieldset") == []


def test_wav_files_are_the_sounds_at_one_gain(tmp_path):
    wavs = [tone(300), 2 * tone(400), np.zeros(800), tone(500, 1)]
    stops = [Stop(f"{i}", wav) for i, wav in enumerate(wavs)]
    explorers = [
        Explorer("Walk", "", stops[:2], "SIM"),
        Explorer("Walk", "", stops[2:], "GIM"),
    ]
    write(tmp_path, [Section("walk", "W", "", explorers)])
    files = sorted(tmp_path.glob("audio/*.wav"))
    assert files[0].name == "000-walk-SIM-0.wav"
    gain = 0.9 / np.abs(wavs[1]).max()
    assert f"one gain, {gain:.3g}" in (tmp_path / "report.md").read_text()
    assert f"one gain, {gain:.3g}" in (tmp_path / "report.html").read_text()
    for file, wav in zip(files, wavs, strict=True):
        assert len(file.read_bytes()) == 44 + 2 * len(wav)
        samples, rate = soundfile.read(file)
        assert rate == 16000
        np.testing.assert_allclose(samples, gain * wav, atol=1.5 / 32768)


def test_equal_sounds_are_kept_once(tmp_path):
    stops = [Stop("one", tone(300)), Stop("two", tone(300).copy())]
    write(tmp_path, [Section("s", "S", "", [Explorer("E", "", stops)])])
    (file,) = tmp_path.glob("audio/*.wav")
    page = (tmp_path / "report.html").read_text()
    data = json.loads(re.search('id="data">(.*?)</script>', page)[1])
    (one, two), (mp3, *pictures) = data["groups"][0][0]["stops"], data["blobs"]
    assert len(pictures) == 2 and one["sound"] == two["sound"] == 0
    sound, _ = soundfile.read(io.BytesIO(base64.b64decode(mp3)))
    np.testing.assert_allclose(sound, soundfile.read(file)[0], atol=0.1)
    markdown = (tmp_path / "report.md").read_text()
    assert f"[one](audio/{file.name}), [two](audio/{file.name})" in markdown


def test_page_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    stops = [Stop("noise", wav) for wav in rng.normal(size=(250, 10240))]
    write(tmp_path, [Section("s", "S", "", [Explorer("E", "", stops)])])
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_only_lines_are_inverted_on_a_dark_page(browser, tmp_path):
    for name, content in (("lines", "<path/>"), ("map", "<image/>")):
        svg = f'<svg xmlns="http://www.w3.org/2000/svg">{content}</svg>'
        (tmp_path / f"{name}.svg").write_text(svg)
        Image.new("RGB", (99, 99)).save(tmp_path / f"{name}.png")
    figures = [Figure(name, "", name, name) for name in ("lines", "map")]
    write(tmp_path, [Section("s", "S", "", figures)])
    browser.get((tmp_path / "report.html").as_uri())
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [feature]}
    )
    filters = [
        image.value_of_css_property("filter")
        for image in browser.find_elements(By.CSS_SELECTOR, ".plot")
    ]
    assert ["invert" in f for f in filters] == [True, False]


def test_spectrogram_has_low_pitches_below():
    mel = np.zeros((65, 80))
    mel[:, 3], mel[0, 70] = 1, 2
    picture = Image.open(io.BytesIO(mel_png(mel, 0, 1)))
    assert picture.size == (65, 80)
    light = np.array(picture.convert("L"), float)
    assert light[80 - 1 - 3].min() == light[80 - 1 - 70, 0] == light.max()
    assert light.argmin() == 0 and light[0].max() == light.min()


def test_markdown_says_the_same(report):
    text = (report / "report.md").read_text()
    head = "# Report\n\nA note.\n\n## Summary\n\nIt works.\n\n### Both\n\n"
    assert text.startswith(f"{head}| system | accuracy |\n| --- | ---: |")
    assert "| SIM | 7 |" in text
    assert "![lines](plots/lines.svg)" in text
    assert "### Only SIM (GIM)\n\n**Not measured.** GIM has no prior." in text
    links = re.findall(r"\((audio/[^)]*)\)", text)
    assert len(links) == 4 * 3 + 2 + 2 * 3 + 3
    assert all((report / link).exists() for link in links)
    assert "<b>" not in text and r"\|" in text


@pytest.mark.parametrize(
    "item, message",
    [
        (Explorer("Walk", "", []), "'Walk' has no stops"),
        (
            Explorer("Walk", "", [Stop("a", np.full(9, np.nan))], "SIM", "top"),
            "'a' of the explorer 'Walk, SIM, top' is not finite",
        ),
        (Explorer("Walk", "", [Stop("a", np.ones(0))]), r"shape \(0,\)"),
        (Explorer("Walk", "", [Stop("a", np.ones((2, 2)))]), r"shape \(2, 2\)"),
        (Table("T", "", ["a", "b"], [["1"]]), "'T' has a row of 1 cells"),
        (Gap("G", "", "CPC"), "'G' belongs to 'CPC'"),
    ],
)
def test_bad_items_are_refused(tmp_path, item, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, [Section("s", "S", "", [item])])
    assert list(tmp_path.iterdir()) == []


def test_things_that_cannot_be_told_apart_are_refused(tmp_path):
    sections = [Section("same", "S", "", [])] * 2
    with pytest.raises(ValueError, match="Two sections have the key 'same'"):
        write(tmp_path, sections)
    explorers = [walk("Walk", "SIM", "top", pitch) for pitch in (100, 200)]
    with pytest.raises(ValueError, match="same title, system and layer"):
        write(tmp_path, [Section("s", "S", "", explorers)])
    with pytest.raises(FileNotFoundError, match="lost.svg"):
        write(tmp_path, [Section("s", "S", "", [Figure("F", "", "lost", "")])])
