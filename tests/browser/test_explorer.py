"""The explorer, looked at and operated in a real browser."""

import re
import threading
from contextlib import contextmanager
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.bottlenecks.vib import TextHalf, UtteranceHalf
from speechbrain_sim.cli import main
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.decoders import SPECTROGRAM, make_decoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.explorer.clips import Clips
from speechbrain_sim.explorer.command import listen, make_server
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import save_parts
from tests.browser.conftest import opened
from tests.browser.test_page import (
    check_contrast,
    check_width,
    find,
    visible,
)

EVIL = "<img src=x onerror=alert(1)>"


class Watched(Engine):
    """Keeps what was decoded to the end; `gate` stops the others before."""

    def __init__(self, models, clips):
        super().__init__(models, clips)
        self.gate, self.begun, self.decoded = threading.Event(), 0, []
        self.gains = {}
        self.gate.set()

    def decode(self, given, check):
        self.begun += bool(given["edits"])
        assert self.gate.wait(20)
        answer = super().decode(given, check)
        self.decoded.append((given["edits"], answer["sound"]))
        self.gains[answer["sound"]] = answer["gain"]
        return answer


@contextmanager
def served(models, paths):
    """Serves models; yields the address, and what is asked."""
    engine = Watched(models, Clips(paths))
    with listen(0) as sock:
        server = make_server(engine, sock, " | ".join(models))
        options = {"kwargs": {"sockets": [sock]}, "daemon": True}
        thread = threading.Thread(target=server.run, **options)
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/", engine
        server.should_exit = True
        thread.join(10)
        server.config.app.state.queue.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The box's recordings, 0.64 s of each."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for path in SmoothInfoMax.from_pretrained("sim-small").examples:
        made.append(folder / f"{path.stem}.wav")
        wav = read_audio(path, 4800, 4800 + 10240).numpy()
        soundfile.write(made[-1], wav, 16000)
    return made


@pytest.fixture(scope="module")
def small(paths):
    """The box's model, served."""
    model = SmoothInfoMax.from_pretrained("sim-small")
    with served({"sim-small": model}, paths) as server:
        yield server


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A tiny model with features, and with halves of its context."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("coded")
    encoder = GreedyEncoder(channels=6, context_channels=4).eval()
    decoder = make_decoder(encoder, "module3", SPECTROGRAM)
    with torch.no_grad():  # untrained, it would hardly hear a change
        decoder.last.weight *= 4
    parts = {"encoder": encoder, "decoder_module3": decoder}
    parts["bottleneck_module3.sae"] = SparseAutoencoder(6, 32, k=6)
    about = {"layer": "context", "pooling": "frame", "target": "phones"}
    about = {"context.vib.text": {**about, "classes": list("_abcd")}}
    voice = {"classes": ["ann", "bob"]}
    about["context.vib.speaker"] = {**about["context.vib.text"], **voice}
    names = {str(unit): f"{unit % 5} (F1 0.50)" for unit in range(32)}
    sae = {"layer": "module3", "pooling": "frame", "names": names}
    about["module3.sae"] = sae
    halves = {"classes": 2, "text_units": 4}
    parts["bottleneck_context.vib.text"] = TextHalf(4, 4, labels=5)
    parts["bottleneck_context.vib.speaker"] = UtteranceHalf(4, 4, **halves)
    about = {f"bottleneck_{name}": entry for name, entry in about.items()}
    save_parts(folder, parts, about, training={"model": "sim"})
    return folder


@pytest.fixture(scope="module")
def pair(coded, paths):
    """Two models side by side, served."""
    models = {"tiny": SmoothInfoMax.from_pretrained(coded)}
    models["sim-small"] = SmoothInfoMax.from_pretrained("sim-small")
    with served(models, paths) as server:
        yield server


def wait(page, condition):
    """Waits for a condition, on a busy machine, too."""
    return WebDriverWait(page, 30, 0.02).until(lambda _: condition())


@contextmanager
def shown(browser, address, width=1280):
    """Opens the page, and waits for its first sounds."""
    with opened(browser, address, width) as page:
        wait(page, lambda: [*map(sound, columns(page)), None][0])
        wait(page, lambda: all(map(sound, columns(page))))
        yield page


@pytest.fixture
def page(browser, small):
    with shown(browser, small[0]) as page:
        yield page


@pytest.fixture
def both(browser, pair):
    with shown(browser, pair[0]) as page:
        yield page


def columns(page):
    return page.find_elements(By.CSS_SELECTOR, "#compare .column")


def sound(column):
    """What is played, once nothing is decoded any more; else None."""
    busy = column.get_dom_attribute("aria-busy")
    audio = column.find_element(By.TAG_NAME, "audio")
    return None if busy != "false" else audio.get_dom_attribute("src")


def heard(page):
    return sound(columns(page)[0])


def press(page, selector, *keys):
    find(page, selector).send_keys(*keys)


def write(page, selector, text):
    press(page, selector, Keys.CONTROL, "a", Keys.NULL, text, Keys.TAB)


def changed(page, before):
    """Waits for another sound; returns it."""
    wait(page, lambda: heard(page) not in (None, before))
    return heard(page)


def choose(page, text):
    """Clicks on a radio button."""
    path = f"//label[span[normalize-space()='{text}']]"
    page.find_element(By.XPATH, path).click()


def upload(page, path):
    press(page, "#file", str(path))
    wait(page, lambda: "read …" not in find(page, "#message").text)
    return find(page, "#message").text


@pytest.mark.parametrize("width", [380, 1280])
def test_everything_is_shown_labelled_and_within_the_window(
    browser, pair, width
):
    with shown(browser, pair[0], width) as page:
        assert page.title == "Explore tiny | sim-small"
        wait(page, lambda: len(visible(page, "#list label")) > 3)
        for image in visible(page, "#live img"):
            if image.get_dom_attribute("src"):
                wait(page, lambda image=image: image.get_property("width") > 1)
                assert image.get_property("naturalWidth") > 9
        assert len(visible(page, "#look [data-lane=means] img")) == 2
        bands = page.find_elements(By.CSS_SELECTOR, "#look .band")
        assert [bool(band.get_dom_attribute("d")) for band in bands] == [1, 1]
        phones, speaker = visible(page, ".probe")
        assert len(phones.find_elements(By.TAG_NAME, "li")) > 3
        assert len(speaker.find_elements(By.TAG_NAME, "li")) == 1
        for control in visible(page, "#live input, #live select"):
            assert control.accessible_name, control.get_attribute("outerHTML")
        for seen in visible(page, "#live img, #live svg, audio, button"):
            assert seen.accessible_name, seen.get_attribute("outerHTML")
        check_width(page)
        for scheme in ("dark", "light"):
            check_contrast(page, scheme)


def test_a_slider_is_heard_when_it_is_released(page, small):
    before, begun = heard(page), small[1].begun
    page.execute_script(
        """
        window.seen = [];
        const note = ({ type }) => seen.push([type, document.querySelector("#compare audio").src]);
        for (const kind of ["input", "pointerup"]) addEventListener(kind, note, true);
        """
    )
    slider = find(page, "#interpolate")
    page.execute_script("arguments[0].scrollIntoView()", slider)
    hand = ActionChains(page).click_and_hold(slider).move_by_offset(30, 0)
    hand.pause(0.3).move_by_offset(20, 0).release().perform()
    after = changed(page, before)
    seen = page.execute_script("return seen")
    assert [kind for kind, _ in seen] == [*["input"] * 3, "pointerup"]
    assert {src for _, src in seen} == {before}
    assert small[1].begun == begun + 1
    assert find(page, "output[for=interpolate]").text > "α = 0.50"
    wait(page, lambda: "ms from release" in find(page, ".latency").text)
    assert re.search(
        r"^\d+ ms from release to sound", find(page, ".latency").text
    )
    assert find(page, "[data-lane=difference] img").is_displayed()
    audio, gains = find(page, "#compare audio"), small[1].gains
    louder, plain = (gains[s.partition(",")[2]] for s in (after, before))
    choose(page, "Decoded")
    assert heard(page) == before and louder < plain
    assert audio.get_property("volume") == pytest.approx(louder / plain)
    choose(page, "Recorded")
    assert heard(page).startswith("blob:")
    choose(page, "Changed")
    assert heard(page) == after and audio.get_property("volume") == 1
    wait(page, lambda: audio.get_property("duration"))
    assert audio.get_property("duration") == pytest.approx(0.64, abs=0.01)


def test_edits_are_undone_and_redone(page):
    sounds = [heard(page)]
    press(page, "#interpolate", Keys.ARROW_RIGHT)
    sounds.append(changed(page, sounds[-1]))
    press(page, "#swap", Keys.PAGE_UP)
    sounds.append(changed(page, sounds[-1]))
    wait(page, lambda: "δ(" in find(page, ".latency").text)
    find(page, "#varying button").click()
    press(page, "#set", Keys.END)
    sounds.append(changed(page, sounds[-1]))
    Select(find(page, "#of")).select_by_value("prior")
    sounds.append(changed(page, sounds[-1]))
    for _ in range(2):
        find(page, "#noise").click()
        sounds.append(changed(page, sounds[-1]))
    assert len({*sounds}) == len(sounds)
    assert len(visible(page, "#edits li")) == 4
    for before in sounds[-2::-1]:
        ActionChains(page).key_down(Keys.CONTROL).send_keys("z").key_up(
            Keys.CONTROL
        ).perform()
        wait(page, lambda before=before: heard(page) == before)
    assert not visible(page, "#edits li")
    assert not find(page, "#undo").is_enabled()
    find(page, "#redo").click()
    wait(page, lambda: heard(page) == sounds[1])
    find(page, "#edits button[aria-label^=Remove]").click()
    wait(page, lambda: heard(page) == sounds[0])


def test_a_span_is_marked_by_hand_and_by_keys_and_a_link_restores_it(
    browser, page
):
    plain = heard(page)
    wave = find(page, "#look .over")
    drag = ActionChains(page).move_to_element_with_offset(wave, -100, -150)
    drag.click_and_hold().move_by_offset(150, 0).release().perform()
    start, end = (
        float(find(page, id).get_property("value")) for id in ("#from", "#to")
    )
    width = wave.rect["width"]
    assert end - start == pytest.approx(0.64 * 150 / width, abs=0.01)
    mark = find(page, "#look .mark").rect
    assert mark["width"] == pytest.approx(150, abs=3)
    write(page, "#from", "0.1")
    write(page, "#to", "0.3")
    press(page, "#set", Keys.END)
    after = changed(page, plain)
    assert find(page, "#edits li").text.startswith(
        "Dimension 0 at +3 σ, 0.1 – 0.3 s"
    )
    link = page.current_url
    find(page, "#whole").click()
    assert find(page, "#from").get_property("value") == ""
    page.get("about:blank")
    page.get(link)
    wait(page, lambda: columns(page) and heard(page) == after)
    assert find(page, "#to").get_property("value") == "0.3"
    write(page, "#to", "0.05")
    assert "before it begins" in find(page, "#message").text
    page.get("about:blank")
    page.get(link.partition("#")[0] + "#clip=%22gone%22&edits=7&dimension={")
    wait(page, lambda: columns(page) and heard(page) == plain)
    assert "is not on the server" in find(page, "#message").text


def test_files_and_the_microphone(page, tmp_path, paths):
    bad = tmp_path / f"{EVIL}.txt"
    bad.write_text("no sound")
    assert "no sound file" in upload(page, bad)
    wav, _ = soundfile.read(paths[0])
    good = tmp_path / f"{EVIL}.flac"
    soundfile.write(good, np.repeat(wav, 3)[::2], 24000)
    before = heard(page)
    assert upload(page, good) == f"{good.name}, 0.64 s."
    changed(page, before)
    clip = Select(find(page, "#clip"))
    assert clip.first_selected_option.text == f"{good.name} (0.64 s)"
    page.execute_script(
        """
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["?"], "dropped.wav"));
        dispatchEvent(new DragEvent("drop", { dataTransfer }));
        """
    )
    wait(page, lambda: "no sound file" in find(page, "#message").text)
    permission = {"permission": {"name": "microphone"}}
    options = {**permission, "setting": "denied"}
    page.execute_cdp_cmd("Browser.setPermission", options)
    find(page, "#record").click()
    wait(page, lambda: "did not allow" in find(page, "#message").text)
    page.execute_cdp_cmd(
        "Browser.setPermission", {**permission, "setting": "granted"}
    )
    # the browser may still ask when it is clicked again: one microphone opens
    count = page.execute_async_script(
        """
        const [done, media, record] = [arguments[0], navigator.mediaDevices, document.getElementById("record")];
        const [open, streams] = [media.getUserMedia.bind(media), []];
        media.getUserMedia = (what) => (streams.push(open(what)), streams.at(-1));
        for (let i = 0; i < 3; i++) record.click();
        Promise.all(streams).then(() => done(streams.length));
        """
    )
    assert count == 1
    # the browser's own microphone beeps once a second
    wait(page, lambda: re.search(r"\([1-9]", find(page, "#record").text))
    find(page, "#record").click()
    wait(
        page, lambda: re.match(r"recording .*, \d", find(page, "#message").text)
    )
    assert "recording" in clip.first_selected_option.text
    wait(page, lambda: heard(page))
    page.get_log("browser")  # answers of 415


def test_of_fifty_moves_the_newest_is_heard(page, small):
    _, engine = small
    before, (begun, done) = heard(page), (engine.begun, len(engine.decoded))
    engine.gate.clear()
    press(page, "#set", *(5 * (5 * [Keys.ARROW_RIGHT] + 5 * [Keys.ARROW_LEFT])))
    press(page, "#set", Keys.HOME)
    assert (
        find(page, "#compare .column").get_dom_attribute("aria-busy") == "true"
    )
    engine.gate.set()
    after = changed(page, before)
    (edits, wav) = engine.decoded[-1]
    assert after.endswith(wav) and edits[0]["deviations"] == -3
    # of 51: the first, the last, and what was on its way as the gate opened
    assert engine.begun - begun <= 4 and len(engine.decoded) - done <= 2


def test_features_are_searched_and_steered(both):
    first, second = map(sound, columns(both))
    rows = visible(both, "#list label")
    assert len(rows) > 3
    press(both, "#find", "3 (F1")
    wait(both, lambda: "match" in find(both, "#count").text)
    rows = visible(both, "#list label")
    assert rows and all("3 (F1 0.50)" in row.text for row in rows)
    rows[-1].click()
    number = rows[-1].text.split()[0]
    title = f"Feature {number} of module3.sae"
    wait(both, lambda: find(both, "#feature-name").text == title)
    line = find(both, "#features polyline").get_dom_attribute("points")
    assert len(line.split()) > 99
    find(both, "#moments button").click()
    wait(both, lambda: find(both, "#recorded").get_property("currentTime"))
    press(both, "#steer", Keys.END)
    changed(both, first)
    assert f"Feature {number} at" in find(both, "#edits").text
    assert sound(columns(both)[1]) == second
    text = "are of the other model"
    wait(both, lambda: text in visible(both, ".latency")[1].text)


def test_codes_of_the_same_name_are_each_model_s_own(browser, coded, paths):
    models = {n: SmoothInfoMax.from_pretrained(coded) for n in ("one", "two")}
    with served(models, paths[:1]) as (address, _):
        with shown(browser, address) as page:
            codes = Select(find(page, "#codes"))
            assert [o.text for o in codes.options] == [
                "one: module3.sae",
                "two: module3.sae",
            ]
            codes.select_by_index(1)
            wait(page, lambda: find(page, "#feature-name").text)
            first, second = map(sound, columns(page))
            press(page, "#steer", Keys.END)
            wait(page, lambda: sound(columns(page)[1]) not in (None, second))
            wait(page, lambda: sound(columns(page)[0]) == first)
            text = "of the other model"
            assert text in visible(page, ".latency")[0].text


def test_halves_are_read_where_the_model_has_them(both):
    choose(both, "context")
    note = find(both, "#look .message")
    wait(both, lambda: "speaker: " in note.text)
    assert re.fullmatch(
        r"phones: .+\. speaker: (ann|bob) \(\d+ %\)\.", note.text
    )
    lanes = [tag.text for tag in visible(both, ".read .tag")]
    assert any("attends to the text half" in lane for lane in lanes)
    assert "has no decoder of context" in visible(both, ".latency")[0].text
    assert not visible(both, "#compare audio")


def test_without_its_server_the_page_says_so(browser, coded, paths, tmp_path):
    model = SmoothInfoMax.from_pretrained(coded)
    with served({EVIL: model}, paths) as (address, _):
        with shown(browser, address) as page:
            assert find(page, "h1").text == f"Explore {EVIL}"
        saved = tmp_path / "served.html"
        saved.write_bytes(urlopen(address).read())
    press(browser, "#interpolate", Keys.END)
    wait(browser, lambda: "still running" in find(browser, ".latency").text)
    with opened(browser, saved, 1280) as page:
        assert "makes it live" in find(page, ".offline").text


def test_a_saved_page_is_a_report(browser, coded, paths, tmp_path):
    page = str(tmp_path / "page.html")
    main(["explore", str(coded), "--files", *map(str, paths), "--save", page])
    with opened(browser, tmp_path / "page.html", 380) as page:
        command = f"speechbrain-sim explore {coded}"
        assert command in find(page, ".offline").text
        assert not visible(page, "#live") and visible(page, ".explorer audio")
        titles = [title.text for title in visible(page, ".explorer h3")]
        assert any("Interpolation" in title for title in titles)
        check_width(page)
