"""The report, its page and what is shown of a run: cases E15, G6, I1 to I4."""

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_sim.analysis.delta import Delta
from speechbrain_sim.analysis.headline import headline
from speechbrain_sim.analysis.latents import Clips, read_clips
from speechbrain_sim.analysis.listening import explore
from speechbrain_sim.analysis.study import Results, Study, System
from speechbrain_sim.analysis.tools import TOOLS, summarise, write_report
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM
from speechbrain_sim.hub.card import write_card
from speechbrain_sim.models.format import load_parts, save_parts
from speechbrain_sim.report import style
from speechbrain_sim.report.page import (
    Explorer,
    Figure,
    Gap,
    Section,
    Stop,
    Table,
    write_page,
)
from tests.browser import conftest as chromium
from tests.browser.conftest import opened
from tests.browser.test_page import check_width, find, stops, tone, visible
from tests.conftest import make_brain, make_loader

browser = chromium.browser
ODD = {
    "mathtext": r"$\nothing{x$",
    "dollar": "$x",
    "legend": "_hidden",
    "pipe": "a|b",
    "script": "<script>document.title = 'evil'</script>",
    "emphasis": "*a* _b_ `c` ~~d~~ [e](f) ![g](h)",
    "lines": "two\nlines",
    "long": "long" * 70,
    "right": "\u05e9\u05dc\u05d5\u05dd \u202eevil",
    "template": "{{ 7 * 7 }}{% endfor %}",
    "version": "v1.5",
    "path": "a/../b#c?d%20e",
    "entity": "&lt;b&gt;",
    "heading": "# 1",
}


def delta_of(value, gap=None):
    """What the tool of delta returns of a layer."""
    if gap:
        return {"gap": gap}
    scores = {"counts": [1, 8], "delta": [value, 0.0]}
    scores |= {"interval": [[value - 0.05, value + 0.05], [0, 0]]}
    scores |= {"pairs": 2, "clips": 2}
    found = {"dimensions": 8, "mae": scores, "mse": scores, "explained": 0.4}
    return found | {"per_pair": [[value, value], [1, 1]]}


def probed(**accuracies):
    """What probes return of each system, by the name of the system."""
    return {
        name: {
            "best_layer": "module1",
            "layers": {
                "module1": {
                    "accuracy": accuracy,
                    "deviation": 0.01,
                    "interval": [accuracy - 0.02, accuracy + 0.02],
                }
            },
        }
        for name, accuracy in accuracies.items()
    }


def study_of(folder, layers, label=None):
    """A study of two systems: layer -> their deltas, or the reason for none."""
    results = {name: {} for name in ("SIM", "GIM")}
    for layer, pair in layers.items():
        for name, value in zip(results, pair, strict=True):
            text = isinstance(value, str)
            results[name][layer] = delta_of(value, value if text else None)
    systems = [
        System(name, None, torch.zeros(1, 9), layers, {}, None, {})
        for name in results
    ]
    results = {"delta": results} if layers else {}
    clips = Clips(["a"], torch.zeros(1, 9), (0, 0))
    study = Study(folder, clips, systems=systems, results=results)
    study = study._replace(pairs=torch.tensor([[0, 1], [1, 0]]))
    return study._replace(probed=label or {})


# I1 -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A page with a table as wide as the demo's summary, and a wider one."""
    folder = tmp_path_factory.mktemp("tables")
    cell = "100.0 ± 10.0 [100.0, 100.0]"
    columns = {n: "" for tool in TOOLS for n in tool.columns}
    rows = [
        {"": f"{system} module{i}"} | dict.fromkeys(columns, cell)
        for system in ("supervised", "GIM")
        for i in (1, 2)
    ]
    wide = [{"": "SIM"} | {f"N = {2**i}": cell for i in range(14)}]
    items = [Table.of("In short", "", rows), Table.of("Wide", "", wide)]
    sections = [Section("summary", "Summary", "", items)]
    write_page(folder, "Report", "", sections, [])
    return folder / "report.html"


def spare(page, title):
    """How much of a table is beyond its edge, and the box."""
    box = find(page, f".scroll[aria-label='{title}']")
    script = "return arguments[0].scrollWidth - arguments[0].clientWidth"
    return page.execute_script(script, box), box


def test_i1_the_summary_fits_on_a_desk(browser, tables):
    with opened(browser, tables, 1280) as page:
        beyond, box = spare(page, "In short")
        assert beyond <= 1 and box.get_property("tabIndex") == -1
        assert not find(page, ".more").is_displayed()


def test_i1_a_wider_table_shows_that_it_scrolls(browser, tables):
    with opened(browser, tables, 1280) as page:
        beyond, box = spare(page, "Wide")
        assert beyond > 100 and box.get_property("tabIndex") == 0
        (hint,) = visible(page, ".more")
        assert "scroll" in hint.text
        assert "gradient" in box.value_of_css_property("mask-image")
        page.execute_script("arguments[0].focus()", box)
        box.send_keys(Keys.ARROW_RIGHT)
        at = page.execute_async_script(
            "const [box, done] = arguments;"
            "box.addEventListener('scrollend', () => done(box.scrollLeft));"
            "box.scrollLeft = 1e6;",
            box,
        )
        assert at > 100
        assert box.value_of_css_property("mask-image") == "none"


@pytest.mark.parametrize("width", [320, 400])
def test_i1_a_phone_stacks_the_columns(browser, tables, width):
    with opened(browser, tables, width) as page:
        for title in ("In short", "Wide"):
            assert spare(page, title)[0] <= 1
        assert visible(page, ".more") == []
        row = find(page, "tbody tr")
        assert row.find_element(By.CSS_SELECTOR, "th").rect["width"] > 200
        cells = row.find_elements(By.CSS_SELECTOR, "td")
        heads = page.find_elements(By.CSS_SELECTOR, "table:first-of-type th")
        script = "return getComputedStyle(arguments[0], '::before').content"
        for cell in cells:
            assert "is better" in page.execute_script(script, cell)
            assert cell.rect["x"] + cell.rect["width"] <= width
            assert cell.aria_role == "cell"
        assert len({cell.rect["y"] for cell in cells}) == len(cells)
        assert heads[1].aria_role == "columnheader"


# I2 -------------------------------------------------------------------------


def test_i2_every_column_states_which_way_is_better(tmp_path):
    columns = [item for tool in TOOLS for item in tool.columns.items()]
    assert len(columns) >= 6
    for title, meaning in columns:
        assert re.search("\n[↓↑] (lower|higher) is better$", title), title
        assert meaning[0].isupper() or meaning[0] == "δ"
        assert meaning.endswith(".")
    study = study_of(tmp_path, {"module1": [0.4, 0.8]})
    summary = summarise([Delta()], study, {})
    write_page(tmp_path, "T", "N", [summary], ["SIM", "GIM"])
    head = "| δ at N/D = 1/8 (%) ↓ lower is better |"
    assert head in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "ours, verdict",
    [
        (0.3, "lower is better: SIM for module1"),
        (0.9, "lower is better: GIM for module1"),
        (0.58, "lower is better: no clear difference for module1"),
    ],
)
def test_i2_the_report_begins_with_the_aim_and_honest_numbers(
    tmp_path, ours, verdict
):
    label = {"phones": probed(SIM=0.5, GIM=0.6, random=0.2)}
    study = study_of(tmp_path, {"module1": [ours, 0.6]}, label)
    text = headline(study, {})
    assert text.startswith("Smooth InfoMax (SIM) learns") and verdict in text
    assert f"δ = {100 * ours:.1f} % (SIM) against 60.0 % (GIM)" in text
    assert "50.0 % (SIM) against 60.0 % (GIM) for phones" in text
    assert "higher is better: GIM for phones" in text
    assert len(re.findall(r"\.(?= [A-Z]|$)", text)) == 2  # sentences


def test_i2_the_paired_interval_decides_where_there_is_one(tmp_path):
    study = study_of(tmp_path, {"module1": [0.58, 0.6]})
    paired = Results(
        SIM={"module1": {"value": -0.02, "interval": [-0.03, -0.01]}}
    )
    assert "SIM for module1" in headline(study, {"delta": paired})


def test_i2_other_studies_begin_with_what_they_have(tmp_path):
    label = {"phones": probed(SIM=0.5, GIM=0.6, random=0.2)}
    outside = Study(tmp_path, probed=label, baseline="random")
    text = headline(outside, {})
    assert "50.0 % (SIM) against 20.0 % (random)" in text and "δ" not in text
    alone = study_of(tmp_path, {"module1": [0.4, 0.8]})
    alone = alone._replace(systems=alone.systems[:1])
    assert headline(alone, {}).endswith("δ = 40.0 % (SIM) for module1.")
    assert headline(Study(tmp_path), {}).endswith("probes read.")


def test_i2_a_decoder_that_does_not_work_is_a_labelled_gap(tmp_path):
    why = "The decoder returns 3 % of the energy."
    study = study_of(tmp_path, {"module1": [why, 0.8], "module2": [why, why]})
    summary = summarise([Delta()], study, {})
    assert "δ could not be compared" in summary.sentence
    some = study_of(tmp_path, {"module1": [why, 0.8], "module2": [0.3, 0.8]})
    text = headline(some, {})
    assert "SIM for module2), where it could be measured" in text
    numbers, missing = summary.items
    cells = [row[1] for row in numbers.rows]
    assert cells == ["not measured"] * 2 + ["80.0 [75.0, 85.0]", "not measured"]
    assert missing.title == "Not measured"
    expected = ["SIM module1", "δ at N/D = 1/8 (%)", why]
    assert missing.rows[0] == expected and len(missing.rows) == 3
    write_report(study, [Delta()], "T", "N", {})
    text = (tmp_path / "report.md").read_text()
    assert "---: |\n| SIM module1 | not measured |" in text
    assert text.count(f"| {why} |") == 3


# I3 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, name",
    [
        (
            {"transcript": "OUR  LAWYER", "speaker": "7", "sex": "F"},
            "“our lawyer” (speaker 7, F)",
        ),
        ({"syllable": "da", "recording": "x"}, "“da”"),
        ({"digit": "3", "spk_id": "ann"}, "“3” (speaker ann)"),
        ({"speaker": "7", "transcript": ""}, "7-1 (speaker 7)"),
        ({"text": "A|b\n<i>"}, "“A|b <i>”"),
        ({"wrd": "Long" * 99}, "“LongLongLongLongLongLongLon…”"),
        ({}, "7-1"),
    ],
)
def test_i3_clips_are_named_by_what_is_said(row, name):
    clips = Clips(["7-1"], torch.zeros(1, 9), (0, 0), {"7-1": row})
    assert clips.name(0) == name


def test_i3_the_report_shows_what_is_said_and_by_whom(tmp_path):
    manifest = tmp_path / "test.csv"
    lines = ["ID,duration,wav,num_samples,speaker,sex,transcript"]
    for i, text in enumerate(["GOOD MORNING", "GOOD NIGHT", "NO"]):
        soundfile.write(tmp_path / f"{i}.wav", tone(300 + i, 1600), 16000)
        lines.append(f"7-{i},0.1,$data_root/{i}.wav,1600,7,F,{text}")
    manifest.write_text("\n".join(lines))
    clips = read_clips(str(manifest), str(tmp_path), 1600, 3)
    latent = SimpleNamespace(mean=torch.randn(3, 10, 4), log_var=None)
    plain = SimpleNamespace(bottleneck_of=lambda layer: None)
    system = System("SIM", plain, clips.wavs, {"top": latent}, {}, None, {})
    decoders = {"top": lambda z, samples: z.mean(2).repeat(1, 160)}
    system = system._replace(decoders={WAVEFORM: decoders})
    first, *walks = explore(system, "top", clips)
    assert first.stops[0].label == "“good morning” (speaker 7, F), recorded"
    assert first.caption.endswith(
        "the first 0.1 s are used. 7-0: “good morning” (speaker 7, F) and "
        "7-1: “good night” (speaker 7, F)."
    )
    assert "From “good morning” (speaker 7, F) to “good nig" in walks[0].caption
    assert walks[0].caption.endswith("Sounds of the waveform decoder.")

    loud = {"top": lambda z, samples: 1 + z.mean(2).repeat(1, 160)}
    both = {WAVEFORM: decoders, SPECTROGRAM: loud}
    first, *walks = explore(system._replace(decoders=both), "top", clips)
    kinds = ["recorded", "decoded, spectrogram", "decoded, waveform"] * 2
    assert [s.label.split("), ")[1] for s in first.stops] == kinds
    np.testing.assert_allclose(first.stops[1].wav, first.stops[2].wav + 1)
    np.testing.assert_allclose(walks[0].stops[0].wav, first.stops[1].wav)
    assert all(w.caption.endswith("the spectrogram decoder.") for w in walks)


# I4 -------------------------------------------------------------------------


def test_i4_a_page_of_the_demo_s_shape_is_small(tmp_path):
    """A third of its 306 stops; test_page_stays_small has 250, of noise."""
    rng = np.random.default_rng(0)
    explorers = []
    for system, count in (("SIM", 19), ("GIM", 15)):
        for layer in "123":
            wavs = rng.normal(size=(count, 10240)).cumsum(1) / 300
            named = [
                Stop(str(i), wav.clip(-1, 1)) for i, wav in enumerate(wavs)
            ]
            explorers.append(Explorer("E", "", named, system, layer))
    with style.drawing(tmp_path / "figures/long", 2) as (_, axes):
        for panel in axes[:, 0]:
            panel.plot(rng.normal(size=10240), linewidth=0.4)
    svg, png = (tmp_path / f"figures/long.{s}" for s in ("svg", "png"))
    figure = Figure("F", "", "figures/long", "noise")
    section = Section("s", "S", "", [*explorers, figure])
    write_page(tmp_path, "T", "", [section], ["SIM", "GIM"])
    assert (tmp_path / "report.html").stat().st_size < 1.2e6
    kind, picture, _ = style.small_picture(tmp_path / "figures/long")
    assert kind == "png" and len(picture) < png.stat().st_size
    assert len(picture) < svg.stat().st_size


def test_i4_sounds_are_true_and_named_as_compressed(browser, tmp_path):
    stops_of = [Stop(str(f), tone(f, 8000)) for f in (300, 3000)]
    silent = Stop("one sample", np.zeros(1))
    explorer = Explorer("E", "", [*stops_of, silent])
    write_page(tmp_path, "T", "", [Section("s", "S", "", [explorer])], [])
    with opened(browser, tmp_path / "report.html", 1280) as page:
        found = list(stops(find(page, ".explorer")))
        assert "MP3" in find(page, "figcaption").text
        save = find(page, ".save").get_dom_attribute("download")
    assert save.endswith(".mp3")
    for stop, shown in zip(stops_of, found, strict=False):
        assert stop.label == shown.label
        head, mp3 = shown.audio.split(",")
        assert head == "data:audio/mpeg;base64"
        wav, _ = soundfile.read(io.BytesIO(base64.b64decode(mp3)))
        peak = np.abs(np.fft.rfft(wav)).argmax() * 16000 / len(wav)
        assert len(wav) == 8000 and peak == float(stop.label)
    files = sorted(tmp_path.glob("audio/*.wav"))
    exact, _ = soundfile.read(files[0])
    np.testing.assert_allclose(exact, 3 * tone(300, 8000), atol=1e-4)


def test_i4_without_an_encoder_of_mp3_the_page_has_wavs(tmp_path, monkeypatch):
    monkeypatch.setattr("speechbrain_sim.report.page.CODEC", "WAV")
    explorer = Explorer("E", "", [Stop("a", tone(300))])
    write_page(tmp_path, "T", "", [Section("s", "S", "", [explorer])], [])
    page = (tmp_path / "report.html").read_text()
    assert (
        '"type": "audio/wav"' in page and "MP3" not in page.split("<script")[0]
    )


# E15 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["sim", "gim", "sim_end_to_end", "supervised"]
)
def test_e15_the_screen_has_few_numbers_the_log_all(tmp_path, caplog, model):
    given = {"classes": 3} if model == "supervised" else {}
    columns = {"target": torch.zeros(6, 1, dtype=int)} if given else {}
    board = TensorboardLogger(tmp_path / "board")
    brain = make_brain(tmp_path, model, tensorboard_logger=board, **given)
    loader = make_loader(3, **columns)
    caplog.set_level("INFO")
    brain.fit(brain.hparams.epoch_counter, loader, make_loader(1, **columns))
    lines = [m for m in caplog.messages if m.startswith("Epoch 1,")]
    log = (tmp_path / "train_log.txt").read_text()
    assert len(lines) == 1 and "train (valid)" in lines[0]
    assert log not in caplog.text and "active" not in lines[0]
    shown = re.findall(r"(\w[\w ]*) [-\d.e+]+ \([-\d.e+]+\)", lines[0])
    every = set(re.findall(r"train (\w+):", log))
    assert {name.strip().replace(" ", "_") for name in shown} <= every
    losses = {name for name in every if name.endswith("loss")}
    assert losses <= {name.strip().replace(" ", "_") for name in shown}
    assert len(shown) <= 2 * max(4, len(brain.modules))
    if "kl" in log:
        assert "kl" in lines[0] and "kl_max" not in lines[0]
    assert set(board.global_step["train"]) == every


# G6 -------------------------------------------------------------------------


def test_g6_any_name_can_be_drawn(tmp_path):
    path = tmp_path / style.figure_stem("names", *ODD.values())
    names = [*ODD.values()]
    with style.drawing(path) as (figure, axes):
        (panel,) = axes[0]
        for i, name in enumerate(names):
            panel.plot([0, 9], [1, 100 * i], **style.look(name, i))
        panel.set_title(ODD["mathtext"])
        panel.set_xticks(range(len(names)), names)
        _, shown = panel.get_legend_handles_labels()
        assert len(shown) == len(names) and " _hidden" in shown
        panel.legend()
    texts = path.with_name(f"{path.name}.svg").read_text()
    for kind in ("mathtext", "dollar", "legend", "template", "version"):
        assert f"<!-- {ODD[kind]} -->" in texts


def test_g6_names_of_figures_are_short_safe_and_different(tmp_path):
    stems = [style.figure_stem("attribution", name) for name in ODD.values()]
    stems += [
        style.figure_stem("attribution", n) for n in ("a b", "a-b", "a/b")
    ]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        name = stem.removeprefix("figures/")
        assert re.fullmatch(r"[\w.+-]+", name) and len(name.encode()) < 100
    with style.drawing(tmp_path / "SIM v1.5"):
        pass
    assert (tmp_path / "SIM v1.5.svg").exists()


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A report of systems, layers and clips with odd names."""
    folder = tmp_path_factory.mktemp("odd")
    items = []
    for name in ODD.values():
        stops_of = [Stop(name, tone(300, 1600)), Stop("b", tone(400, 1600))]
        items.append(Explorer("Walk", name, stops_of, name, ODD["template"]))
        items.append(Gap(name, name, name))
    rows = [[name, "1.0", name] for name in ODD.values()]
    items.append(Table("T", "", ["", "a|b\nc", "name"], rows))
    section = Section("odd", ODD["script"], ODD["emphasis"], items)
    write_page(
        folder, ODD["script"], ODD["heading"], [section], [*ODD.values()]
    )
    return folder


def test_g6_any_name_is_text_in_html(browser, odd):
    with opened(browser, odd / "report.html", 400) as page:
        assert page.title == ODD["script"]
        heads = page.find_elements(By.CSS_SELECTOR, "tbody th")
        texts = [head.get_property("textContent") for head in heads]
        assert texts == [*ODD.values()]
        radios = page.find_elements(By.CSS_SELECTOR, "[name=system]")
        for radio, name in zip(radios, ODD.values(), strict=True):
            page.execute_script("arguments[0].click()", radio)
            about = find(page, ".about").get_property("textContent")
            assert about == name
            (gap,) = visible(page, ".gap p")
            assert " ".join(name.split()) in gap.text
            check_width(page)


def test_g6_any_name_is_text_in_markdown(odd):
    text = (odd / "report.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# &lt;script>document.title = 'evil'&lt;/script>"
    assert lines[2] == r"\# 1"
    table = [line for line in lines if line.startswith("| ")]
    assert table[0] == r"|  | a\|b c | name |" and len(table) == 2 + len(ODD)
    for line in table:
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
    for mark in (r"\$x", r"\*a\* \_b\_ \`c\` \~\~d\~\~ [e\](f) \![g\](h)"):
        assert f"| {mark} | 1.0 | {mark} |" in table
    assert "| &amp;lt;b&amp;gt; |" in text and "| two lines |" in text
    links = re.findall(r"\(audio/([^)]*)\)", text)
    assert len(links) == 2 * len(ODD)
    data = (odd / "report.html").read_text().split('id="data">')[1]
    data = json.loads(data.split("</script>")[0])
    (group,) = data["groups"]
    assert [variant["system"] for variant in group] == [*ODD.values()]
    for variant in group:
        for stop in variant["stops"]:
            assert (odd / "audio" / stop["file"]).exists()
            assert len(stop["file"].encode()) < 100


def test_g6_a_name_that_is_no_text_does_not_end_a_report(tmp_path):
    table = Table("\udcff", "", [""], [["\udcff"]])
    write_page(tmp_path, "T", "", [Section("s", "S", "", [table])], [])
    assert r"\udcff" in (tmp_path / "report.html").read_text()
    assert style.figure_stem("\udcff").startswith("figures/-")


@pytest.mark.parametrize("name", ["pipe", "script", "emphasis", "entity"])
def test_g6_any_name_is_text_in_a_card(trained, tmp_path, name):
    config = json.loads((trained.model / "config.json").read_text())
    config["parts"][f"probe_{ODD[name]}"] = {
        **config["parts"].pop("probe_phones"),
        "label": ODD[name],
    }
    config["data"] |= {"name": ODD[name], "licence": ODD[name]}
    config["training"]["comment"] = ODD[name]
    folder = tmp_path / 'a_b | "c"'
    folder.mkdir()
    write_card(folder, config)
    card = (folder / "README.md").read_text().split("---\n", 2)[2]
    raw = {"pipe": "a|b", "script": "<script>", "emphasis": "*a*"}
    assert raw.get(name, "&lt;b") not in card.replace("&amp;lt;b", "")
    assert r'source = "a_b | \"c\""' in card
    assert card.lstrip().startswith('# a_b \\| "c"\n')


@pytest.mark.parametrize("label", ["a/b", "a\\b", "two\nlines", "x" * 100])
def test_g6_a_label_that_cannot_name_a_file_is_refused_first(recipes, label):
    hparams = {
        "label": label,
        "label_name": label,
        "label_kinds": {},
        "hidden": 0,
    }
    with pytest.raises(ValueError, match="without slashes and line breaks"):
        recipes["probe"].check({**hparams, "controls": 5})


@pytest.mark.parametrize("label", ["v1.5", "a|b", "$x", "über alles"])
def test_g6_any_other_label_names_a_part(trained, tmp_path, label):
    parts, about = load_parts(trained.probe, ["encoder", "probe_speaker"])
    about = about["parts"]["probe_speaker"] | {"label": label}
    parts[f"probe_{label}"] = parts.pop("probe_speaker")
    save_parts(tmp_path, parts, {f"probe_{label}": about})
    assert list(load_parts(tmp_path, [f"probe_{label}"])[0]) == [
        f"probe_{label}"
    ]
