"""What README and docs show, runs: every code block, link and name."""

import ast
import importlib
import itertools
import re
import shlex
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import ruamel.yaml
import soundfile
import torch
from click.testing import CliRunner
from huggingface_hub.cli import hf
from hyperpyyaml import load_hyperpyyaml

from speechbrain_sim import config
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.bottlenecks.vib import TextHalf, UtteranceHalf
from speechbrain_sim.cli import make_parser
from speechbrain_sim.data.espeak import PHONES
from speechbrain_sim.models.format import load_parts, save_parts
from tests.conftest import HPARAMS, ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *ROOT.glob("*.md"),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "recipes").rglob("*.md")),
    )
}
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
#: a block's first line that names the file it is
NAMED = re.compile(r"# ([\w./]+\.(?:yaml|py))\n")


def blocks(page, language):
    return [
        text for kind, text in BLOCK.findall(PAGES[page]) if kind == language
    ]


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture(scope="session")
def sae_run(tmp_path_factory):
    """What recipes/bottleneck.py leaves of `sim-small`, untrained."""
    folder = tmp_path_factory.mktemp("sae") / "run"
    names = ["encoder", "decoder_module3"]
    parts, config = load_parts("sim-small", names)
    sae = SparseAutoencoder(parts["encoder"].channels_of("module3"), 512, k=16)
    about = {name: config["parts"][name] for name in names}
    about["bottleneck_module3.sae"] = {"layer": "module3", "pooling": "frame"}
    parts["bottleneck_module3.sae"] = sae
    save_parts(folder, parts, about, training=config["training"])
    return folder


def save_halves(folder):
    """What recipes/vib.py leaves of `sim-small`, untrained."""
    parts, config = load_parts("sim-small", ["encoder"])
    halves = {"text": TextHalf(256, 32, labels=40)}
    halves["speaker"] = UtteranceHalf(256, 32, classes=20, text_units=32)
    halves = {f"bottleneck_context.vib.{n}": x for n, x in halves.items()}
    about = dict.fromkeys(halves, {"layer": "context", "pooling": "frame"})
    save_parts(folder, parts | halves, about, training=config["training"])


@pytest.fixture
def place(tmp_path, trained, sae_run, monkeypatch):
    """A folder with what the pages name: models, a run, a recording, yamls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(sae_run, "results/Synthetic/sae_topk_1")
    save_halves("results/Synthetic/vib_1")
    shutil.copytree(trained.model, "sim-demo")
    shutil.copytree(trained.run, "results/demo/SIM_1")
    shutil.copytree(HPARAMS, "hparams")
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 15 * 22050)
    soundfile.write("lecture.flac", noise, 22050)
    torch.manual_seed(0)
    yield tmp_path
    sys.modules.pop("mine", None)


def write_named(page, place):
    """Writes the blocks of a page that name their file; returns their paths."""
    paths = []
    for text in blocks(page, "python") + blocks(page, "yaml"):
        if name := NAMED.match(text):
            paths.append(place / name[1])
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_text(text, encoding="utf-8")
    return paths


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_tested(page):
    fences = re.findall(r"^\s*(?:```|~~~).*$", PAGES[page], re.M)
    assert len(fences) == 2 * len(BLOCK.findall(PAGES[page]))
    for kind, text in BLOCK.findall(PAGES[page]):
        assert kind in ("python", "py", "bash", "yaml", "text")
        if kind == "py":  # of libraries that are not installed
            assert re.search("from (s3prl|sae_lens)|sae[.]", text)
            assert "speechbrain_sim" not in text and ast.parse(text)
        if kind == "text":  # a listing
            assert not re.search(r"^[$>]|python|make |pip |import ", text)


# ---------------------------------------------------------------------- python


def save_hubert(folder):
    """A tiny HuBERT with random weights, and its preprocessor."""
    from transformers import (
        HubertConfig,
        HubertModel,
        Wav2Vec2FeatureExtractor,
    )

    sizes = {"hidden_size": 16, "intermediate_size": 16, "conv_dim": [8] * 7}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    HubertModel(HubertConfig(**sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


#: their cells are executed by tests/test_tutorials.py
EXECUTED = {page for page in PAGES if page.startswith("docs/tutorials/")}


@pytest.mark.parametrize("page", sorted({*pages_with("python")} - EXECUTED))
def test_python_blocks_run(page, place):
    names = {}
    if page == "docs/coming-from.md":
        save_hubert("hubert-base-ls960")
    for text in blocks(page, "python"):
        exec(compile(text, page, "exec"), names)


def printed_by(page, capsys):
    names = {}
    for text in blocks(page, "python"):
        exec(text, names)
    return names, capsys.readouterr().out.splitlines()


def test_the_readme_prints_what_it_states(place, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("there is no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    first, second = blocks("README.md", "python")
    assert BLOCK.search(PAGES["README.md"])[2] == first
    assert len(first.strip().splitlines()) == 6
    assert len(second.strip().splitlines()) <= 9
    assert len(PAGES["README.md"].splitlines()) <= 132
    _, printed = printed_by("README.md", capsys)
    (phones,) = ast.literal_eval(printed[0])
    assert len(phones) > 5 and set(phones) <= set(PHONES)
    walk, rate = soundfile.read("walk.wav")
    assert rate == 16000 and len(walk) > 9 * 16000
    assert walk.std() > 1e-3  # it can be heard
    shape = "torch.Size([2, 64, 512])"
    assert printed[1:] == [f"{shape} {shape}", "[64, 51] False"]


def test_models_are_used_as_the_page_shows(place, capsys):
    names, (frames, phones, *printed) = printed_by(
        "docs/use-anywhere.md", capsys
    )
    frames, phones = map(ast.literal_eval, (frames, phones))
    assert len(frames) == 30 and {*frames, *phones} <= set(PHONES)
    assert names["walk"].shape[0] == 5
    assert printed[:2] == ["torch.Size([1, 1500, 6])", "[64, 51] True"]
    assert re.fullmatch(r"\[(\['(ann|bob)'\](, )?){2}\]", printed[2])
    # ten seconds, less the frame that still waits for its last samples
    pieces = ["torch.Size([1, 999, 6])", "torch.Size([1, 501, 6])"]
    assert printed[-2:] == pieces
    assert names["waveform"].dim() == 2
    assert names["latents"]["module3"].mean.shape == (2, 64, 6)
    assert names["mean"].shape == (2, 64, 6)
    assert names["frames"].tolist() == [64, 51]
    assert (place / "sim.onnx").stat().st_size > 1000


def test_features_are_found_and_silenced_as_the_page_shows(place, capsys):
    names, printed = printed_by("docs/sparse-autoencoders.md", capsys)
    assert len(printed) == 3 and names["codes"].shape == (1, 1500, 512)
    silenced, rate = soundfile.read("without.wav")
    original = names["steered"].original.numpy()
    assert rate == 16000 and len(silenced) == len(original) == 15 * 16000
    changed = abs(silenced - original) > 1e-3
    assert changed[16000:40000].any() and not changed[60000:].any()


def test_paths_through_latents_are_decoded(place, capsys):
    names, printed = printed_by("docs/look-inside.md", capsys)
    assert printed[-2:] == ["torch.Size([2, 10240])", "torch.Size([9, 10240])"]
    assert names["varied"].shape == (3, 64, 512)


# ------------------------------------------------------------------------ yaml


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_blocks_are_loaded(page, place):
    write_named(page, place)
    bases = set()
    for text in blocks(page, "yaml"):
        name = NAMED.match(text)
        if not name:
            assert load_hyperpyyaml(text)
            continue
        path = place / name[1]
        above = ruamel.yaml.YAML().load(text).get("base", [])
        bases |= {(path.parent / base).resolve() for base in above}
        if above:
            needed = [
                key
                for key, node in config.read_yaml(path).items()
                if str(getattr(node, "tag", "")).endswith("!PLACEHOLDER")
            ]
            assert set(needed) <= {"data_folder", "encoder"}
            argv = [f"--{key}=sim-demo" for key in needed]
            hparams, _ = config.load_experiment(
                [str(path), "--device=cpu", *argv]
            )
            assert hparams["prepare"].func.__module__ == "mine"
    named = {p for p in write_named(page, place) if p.suffix == ".yaml"}
    assert all("base" in read_raw(p) or p.resolve() in bases for p in named)


def read_raw(path):
    return ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))


def test_features_take_the_place_of_a_spectrogram(place):
    (text,) = blocks("docs/use-anywhere.md", "yaml")
    features = load_hyperpyyaml(text)["compute_features"]
    assert features(torch.randn(2, 10240)).shape == (2, 64, 6)


# ------------------------------------------------------------------------ bash


def commands(text):
    """Splits a block into commands: lists of words, variables replaced."""
    text = re.sub(r"(^|\s)#[^\n]*", r"\1", text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    lines, variables = [[]], {}
    for word in lexer:
        if set(word) == {"\n"}:
            lines.append([])
        else:
            lines[-1].append(word)
    for words in filter(None, lines):
        expanded = []
        for word in words:
            value = re.sub(r"\$(\w+)", lambda m: variables[m[1]], word)
            bare = re.fullmatch(r"\$\w+", word)
            expanded += value.split() if bare else [value]
        assignments = [w for w in expanded if re.match(r"[A-Z]+=", w)]
        if len(assignments) == len(expanded):
            variables.update(word.split("=", 1) for word in assignments)
            continue
        while re.match(r"[A-Z]+=", expanded[0]):  # of this command only
            expanded.pop(0)
        yield expanded


def test_a_block_is_split_into_commands():
    text = (
        'R=results/a  # where\nP="--lr 0.1 --seed 2"\n'
        'python x.py $P \\\n    --to "$R/b c"\nA=1 make demo\n'
    )
    assert list(commands(text)) == [
        [
            "python",
            "x.py",
            "--lr",
            "0.1",
            "--seed",
            "2",
            "--to",
            "results/a/b c",
        ],
        ["make", "demo"],
    ]


def check_make(target, *variables):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.M), target
    for variable in variables:
        assert f"$({variable.split('=')[0]})" in makefile, variable


def check_speechbrain_sim(*words):
    try:
        make_parser().parse_args(words)
    except SystemExit as error:
        raise AssertionError(f"speechbrain-sim {' '.join(words)}") from error


class Checked(Exception):
    """Keys and kinds of values were accepted; objects would be made now."""


def check_recipe(script, yaml, *options):
    assert (ROOT / script).is_file(), script
    assert Path(yaml).is_file(), yaml  # in `place`

    def stop(_):
        raise Checked

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Checked):
        patch.setattr(config, "load_hyperpyyaml", stop)
        config.load_experiment([yaml, *options])


def check_python(*words):
    if words[0] == "-c":
        tree = ast.parse(words[1])
        imports = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
        assert imports
        exec(ast.unparse(ast.Module(imports, [])), {})
    elif words[0] == "-m":
        given = [re.sub("^@", f"@{ROOT}/", word) for word in words[2:]]
        importlib.import_module(words[1]).make_parser().parse_args(given)
    elif words[0].startswith("recipes/"):
        check_recipe(*words)
    elif words[0].startswith("examples/"):
        (script,) = words
        assert (ROOT / script).is_file()
    else:  # our scripts: they print their use
        script, command = words
        assert f"{script} {command}" in (ROOT / script).read_text() or (
            f"`{command}`" in (ROOT / script).read_text()
        )


def check_torchrun(*words):
    options = [*itertools.takewhile(lambda w: w[:2] == "--", words)]
    assert any(re.fullmatch(r"--nproc-per-node=\d", o) for o in options)
    words = words[len(options) :]
    if words[0] == "-m":
        assert words[1] == "speechbrain_sim.cli"
        return check_speechbrain_sim(*words[2:])
    check_recipe(*words)


def check_srun(program, *words):
    assert program == "torchrun"
    check_torchrun(*words)


def check_pip(verb, what, *options):
    assert (verb, *options[:2:2]) in [("install",), ("wheel", "--no-deps")]
    extra = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert extra and (not extra[1] or f'"{extra[1]}"' in setup)


def check_hf(*words):
    names = [*itertools.takewhile(str.isalpha, words)]
    done = CliRunner().invoke(hf.app, [*names, "--help"])
    assert done.exit_code == 0
    for option in [word for word in words if word[:2] == "--"]:
        assert re.search(rf"{option}\b", done.output), option


def check_cp(*words):
    option, source, target = words
    assert option == "-r" and (ROOT / source).is_dir()
    shutil.copytree(ROOT / source, target)  # in `place`


def check_sed(*words):
    option, script, path = words
    assert option == "-i" and script.split("#")[1] in Path(path).read_text()


CHECKS = {
    "cp": check_cp,
    "hf": check_hf,
    "sed": check_sed,
    "make": check_make,
    "speechbrain-sim": check_speechbrain_sim,
    "python": check_python,
    "torchrun": check_torchrun,
    "srun": check_srun,
    "pip": check_pip,
}


@pytest.mark.parametrize("page", pages_with("bash"))
def test_bash_blocks_name_what_exists(page, place):
    write_named(page, place)
    for text in blocks(page, "bash"):
        for program, *words in commands(text):
            CHECKS[program](*words)


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "speechbrain-sim export",
        "python recipes/pretrain.py hparams/Synthetic/pretrain.yaml --chanels 3",
        "python recipes/pretrain.py hparams/Synthetic/nothing.yaml",
        "python recipes/pretrain.py hparams/LibriSpeech/pretrain.yaml",
        "python -c 'from speechbrain_sim.nothing import make'",
        "pip install .[nothing]",
        "curl something",
        "pip download .",
        "hf upload me/sim . --typ space",
        "cp -r examples/nothing there",
    ],
)
def test_a_wrong_command_fails(line, place):
    ((program, *words),) = commands(line)
    with pytest.raises((AssertionError, LookupError, ValueError, ImportError)):
        CHECKS[program](*words)


# --------------------------------------------------------------------- figures

PICTURE = re.compile(r"!\[[^\]]*\]\([^)]+\)|<img|<audio")
COMMAND = re.compile(r"^(?:python|make) ")


def commands_under(text, at):
    """The commands between a place of a page and the next heading."""
    rest = re.split(r"^#", BLOCK.sub(_in_one_line, text[at:]), flags=re.M)[0]
    found = re.findall(r"```bash\0(.*?)```", rest)
    inline = re.findall("`([^`]+)`", re.sub("```.*?```", "", rest))
    found += filter(COMMAND.match, inline)
    return [command.replace("\0", "\n") for command in found]


def _in_one_line(block):
    return f"```{block[1]}\0" + block[2].replace("\n", "\0") + "```"


FIGURES = {page for page in PAGES if PICTURE.search(PAGES[page])}


@pytest.mark.parametrize("page", sorted(FIGURES - EXECUTED))
def test_every_figure_stands_above_its_command(page, place):
    for picture in PICTURE.finditer(PAGES[page]):
        found = commands_under(PAGES[page], picture.end())
        assert found, picture[0]
        for program, *words in commands("\n".join(found)):
            if (program, *words) != ("python", "-m", "docs.figures"):
                CHECKS[program](*words)


@pytest.mark.parametrize("page", sorted(EXECUTED))
def test_a_tutorial_names_the_command_that_made_its_figures(page):
    assert f"`python docs/tutorials.py run {Path(page).stem}`" in PAGES[page]


def test_a_figure_without_a_command_is_found():
    text = "![a](b.svg)\n\n`x.py`\n\n## Next\n\n```bash\nmake x\n```\n"
    assert commands_under(text, 11) == []
    assert commands_under(text.replace("## ", ""), 11) == ["make x\n"]
    assert commands_under(text.replace("x.py", "make y"), 11) == ["make y"]


# ------------------------------------------------------------- links and names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    own = r"\]\((?!\w+:|#)([^)#\s]+)|src=\"([^\"]+)"
    for link in map("".join, re.findall(own, PAGES[page])):
        path = (ROOT / page).parent / link
        assert path.exists(), link
        assert path.resolve().is_relative_to(ROOT), link


def spans(text):
    """Code in single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"CHANGELOG.md"}))
def test_names_are_of_files_and_objects_that_exist(page, place):
    write_named(page, place)
    for span in spans(PAGES[page]):
        folders = "recipes|hparams|docs|benchmarks|tests|speechbrain_sim"
        if re.fullmatch(rf"(?:{folders})/[\w./]+", span):
            assert (ROOT / span).exists() or Path(span).exists(), span
        if re.fullmatch(r"speechbrain_sim(\.\w+)+", span):
            assert find(span), span


@pytest.mark.parametrize("page", ["docs/glossary.md", "docs/coming-from.md"])
def test_options_of_the_glossary_exist(page):
    yamls = [path.read_text() for path in HPARAMS.rglob("*.yaml")]
    keys = set(re.findall(r"^(\w+):", "\n".join(yamls), re.M)) | {"model"}
    options = [s[2:] for s in spans(PAGES[page]) if s.startswith("--")]
    assert len(options) > 2 and set(options) <= keys


def test_every_term_of_the_glossary_leads_somewhere():
    _, *terms = re.split(r"^### ", PAGES["docs/glossary.md"], flags=re.M)
    assert len(terms) > 40
    for term in terms:
        code = r"`(speechbrain_sim\.|--|recipes/)|\]\([\w/.-]+\.md"
        assert re.search(code, term), term
        assert len(term.split()) < 110, term


def find(name):
    """Imports what a dotted name leads to; None if there is no such thing."""
    names = name.split(".")
    for split in range(len(names), 0, -1):
        try:
            found = importlib.import_module(".".join(names[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in names[split:]:
            found = getattr(found, attribute, None)
        return found
    return None


def columns(text):
    """The cells of all table rows of a page."""
    rows = re.findall(r"^\|(.*)\|$", text, re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_the_changelog_leads_to_what_exists():
    renamed = [
        row[1] for row in columns(PAGES["CHANGELOG.md"]) if len(row) == 2
    ]
    names = [n for cell in renamed for n in spans(cell) if n[0] != "."]
    assert len(names) > 20
    assert [name for name in names if not find(name)] == []


def test_the_walk_passes_files_that_exist():
    now = [row[2] for row in columns(PAGES["docs/architecture.md"]) if row[2:]]
    files = [n for cell in now for n in spans(cell) if n.endswith(".py")]
    assert len(files) > 30
    folders = ROOT, ROOT / "speechbrain_sim"
    missing = [f for f in files if not any((d / f).is_file() for d in folders)]
    assert missing == []


def test_every_room_has_a_line():
    text = PAGES["docs/architecture.md"].split("## Rooms")[1].split("## ")[0]
    listed = [row[0].strip("`") for row in columns(text)[2:]]
    package = ROOT / "speechbrain_sim"
    rooms = {p.stem for p in package.glob("[a-z]*.py")}
    rooms |= {p.parent.name for p in package.glob("*/__init__.py")}
    assert set(listed) == rooms | {"speechbrain_sim"}
    assert len(listed) == len(set(listed))


def test_every_room_has_its_reference():
    pages = [
        text for name, text in PAGES.items() if name.startswith("docs/api")
    ]
    shown = re.findall(r"^::: speechbrain_sim\.(\w+)", "\n".join(pages), re.M)
    package = ROOT / "speechbrain_sim"
    rooms = {p.stem for p in package.glob("[a-z]*.py")}
    rooms |= {p.parent.name for p in package.glob("*/__init__.py")}
    assert set(shown) == rooms
