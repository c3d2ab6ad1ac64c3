"""Feature pages, looked at and operated in a real browser."""

import base64
import hashlib
import io
import re

import numpy as np
import pytest
import soundfile
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from speechbrain_sim.analysis.feature_cards import FACTORS
from speechbrain_sim.analysis.feature_pages import write_pages
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.cli import main
from speechbrain_sim.decoders import SPECTROGRAM, make_decoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import save_parts
from speechbrain_sim.models.load import load_encoder, plain
from tests.browser.conftest import opened
from tests.browser.test_page import check_width, find, visible, wait

CODES = "module3.sae"


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """The pages of a tiny SAE: of a corpus, and of one of its files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("features")
    encoder = GreedyEncoder(channels=6, context_channels=4).eval()
    decoder = make_decoder(encoder, "module3", SPECTROGRAM)
    with torch.no_grad():  # untrained, it would hardly hear a change
        decoder.last.weight *= 20
    sae = SparseAutoencoder(6, 32, k=6)
    parts = {"encoder": encoder, "decoder_module3": decoder}
    parts[f"bottleneck_{CODES}"] = sae
    about = {f"bottleneck_{CODES}": {"layer": "module3", "pooling": "frame"}}
    known = {str(unit): f"{unit % 5} (F1 0.50)" for unit in range(32)}
    about[f"bottleneck_{CODES}"]["names"] = known
    save_parts(folder, parts, about, training={"model": "sim"})
    made = corpus.valid, corpus.folder
    store = encode_manifest(
        *plain(*load_encoder(folder)),
        *made,
        folder / "store",
        ["module3"],
        rows="all",
    )
    sae.set_units(*store.statistics("module3"))
    save_parts(folder, parts, about, training={"model": "sim"})
    kinds = {"phones": (list("01234"), "frames")}
    kinds["pitch"] = (["high", "low"], "utterance")
    labels = {
        label: (classes, store.labels(label, classes, kind, "module3"))
        for label, (classes, kind) in kinds.items()
    }
    model = SmoothInfoMax.from_pretrained(folder)
    options = {"count": 6, "moments": 3, "note": "Tiny."}
    with torch.no_grad():  # the loudest first
        f1 = (sae.encode(store["module3"][:]).mean(0) / 9).tolist()
    options["names"] = {CODES: {unit: f"{unit % 5}" for unit in range(32)}}
    options["scores"] = {CODES: {"F1": f1, "gain of F1": f1}}
    write_pages(folder, model, store, {"module3": labels}, *made, **options)
    wav, page = f"{corpus.folder}/utterance03.wav", str(folder / "file.html")
    main(["features", str(folder), wav, "--html", page, "--top", "3"])
    return folder


@pytest.fixture(params=[380, 1280])
def page(browser, folder, request):
    with opened(browser, folder / "report.html", request.param):
        yield browser


def cards(page):
    return visible(page, ".card")


def names(page):
    return [card.find_element(By.TAG_NAME, "h4").text for card in cards(page)]


def unfold(page, card):
    """Opens a card by the keyboard; waits for its sounds."""
    card.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    audio = card.find_element(By.TAG_NAME, "audio")
    wait(page, lambda: audio.get_dom_attribute("src"))


def samples(audio):
    kind, content = audio.get_dom_attribute("src").split(";base64,")
    assert kind.startswith("data:audio/")
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert rate == 16000
    return wav


def test_search_and_order(page):
    everything = names(page)
    assert len(everything) == 6
    search, order = find(page, "[type=search]"), find(page, ".search select")
    shown = [re.fullmatch(r"Feature (\d+) (.+)", n) for n in everything]
    assert all(shown)
    label = shown[0][2]
    search.send_keys(label.upper())
    found = names(page)
    assert everything[0] in found
    text = find(page, ".search output").text
    assert text == f"{len(found)} of 6 features"
    words = [c.get_dom_attribute("data-words").split() for c in cards(page)]
    assert all(label in card for card in words)
    search.clear()
    search.send_keys(shown[2][1])
    assert everything[2] in names(page)
    search.send_keys(" nothing")
    assert cards(page) == []
    search.clear()
    search.send_keys(Keys.SPACE)
    assert names(page) == everything
    Select(order).select_by_visible_text("F1")
    facts = [
        card.find_element(By.CSS_SELECTOR, ".facts") for card in cards(page)
    ]
    f1 = [float(re.search(r"F1 (\S+)", x.text)[1]) for x in facts]
    assert f1 == sorted(f1, reverse=True) and len(set(f1)) > 1
    Select(order).select_by_index(0)
    assert names(page) == everything


def test_moments_and_steering_sound_and_differ(page):
    card = cards(page)[0]
    audio = card.find_elements(By.TAG_NAME, "audio")
    assert all(a.get_dom_attribute("src") is None for a in audio)  # yet
    unfold(page, card)
    sounds = [samples(a) for a in audio]
    assert len(sounds) == 3 + 5  # moments, and what is steered
    hashes = {hashlib.sha256(s.tobytes()).hexdigest() for s in sounds[3:]}
    assert len(hashes) == 5
    assert all(np.abs(s).max() > 0.01 for s in sounds)
    page.execute_script("arguments[0].load()", audio[0])
    wait(page, lambda: audio[0].get_property("duration"))
    seconds = audio[0].get_property("duration")
    assert seconds == pytest.approx(len(sounds[0]) / 16000, abs=1e-3)
    pictures = card.find_elements(By.CSS_SELECTOR, "img")
    wait(page, lambda: all(p.get_property("naturalWidth") for p in pictures))
    changes = card.find_elements(By.CSS_SELECTOR, "img.change")
    assert len({p.get_dom_attribute("src") for p in changes}) == 4


def test_a_slider_steers(page):
    card = cards(page)[0]
    unfold(page, card)
    slider = card.find_element(By.CSS_SELECTOR, ".steer input")
    output = card.find_element(By.CSS_SELECTOR, ".steer output")
    heard = []
    for name in [*FACTORS][1:]:
        shown = [c for c in visible(page, ".steered .clip")]
        assert len(shown) == 2 and name in shown[1].text
        assert output.text == slider.get_dom_attribute("aria-valuetext") == name
        audio = shown[1].find_element(By.TAG_NAME, "audio")
        heard.append(samples(audio).tobytes())
        slider.send_keys(Keys.ARROW_RIGHT)
    assert len({*heard}) == 4
    assert "unchanged" in shown[0].text


def test_the_mark_lies_in_the_picture(page):
    card = cards(page)[0]
    unfold(page, card)
    for strip in visible(page, ".card .strip"):
        mark = strip.find_element(By.CSS_SELECTOR, ".mark").rect
        assert mark["width"] > 0
        ends = strip.rect["x"], strip.rect["x"] + strip.rect["width"]
        assert (
            ends[0] - 1 <= mark["x"] <= mark["x"] + mark["width"] <= ends[1] + 1
        )


def test_everything_is_labelled_and_nothing_overflows(page):
    for card in cards(page)[:2]:
        unfold(page, card)
    for element in visible(page, ".features input, .features select"):
        assert page.execute_script("return arguments[0].labels[0]", element)
    for element in visible(page, ".card img, .card audio, .histogram"):
        assert element.accessible_name
    check_width(page)


def test_an_address_opens_a_card(browser, folder):
    with opened(browser, folder / "report.html", 1280) as page:
        name = cards(page)[3].get_dom_attribute("id")
        page.execute_script("location.hash = arguments[0]", name)
        wait(page, lambda: cards(page)[3].get_property("open"))


def test_the_page_of_a_file(browser, folder, corpus):
    with opened(browser, folder / "file.html", 380) as page:
        assert page.title == "utterance03.wav"
        assert any(re.search(r" \(F1 0\.50\)$", name) for name in names(page))
        unfold(page, cards(page)[0])
        first, *others = cards(page)[0].find_elements(By.TAG_NAME, "audio")
        wav, _ = soundfile.read(f"{corpus.folder}/utterance03.wav")
        assert abs(len(samples(first)) - len(wav)) <= 160
        assert len(names(page)) > 3 and len(others) >= 1 + 5
        check_width(page)


def test_markdown_links_to_the_sounds(folder):
    text = (folder / "report.md").read_text()
    links = re.findall(r"\(audio/([^)]+)\)", text)
    assert len(links) == 6 * (3 + 5)
    assert all((folder / "audio" / link).exists() for link in links)
