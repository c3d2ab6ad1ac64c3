"""Cases of manifests, labels, caches, and what a result states of its data."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from speechbrain_sim.activations import ActivationStore
from speechbrain_sim.config import read_settings
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.batches import KeyedCrop, classes_of, make_dataset
from speechbrain_sim.data.corpora import CONTENTS, recognise
from speechbrain_sim.data.corpora.folder import prepare_folder
from speechbrain_sim.data.manifests import (
    Problem,
    check_same_data,
    refuse,
    write_manifests,
)
from speechbrain_sim.data.phones import name_phones, read_phones
from speechbrain_sim.data.tables import (
    manifest_hash,
    read_csv,
    read_manifest,
    row_hashes,
)
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import (
    _content_hash,
    cached_result,
    content_hash,
    read_arrays,
    sha256,
)
from speechbrain_sim.hub.publish import export_model
from speechbrain_sim.models.load import load_encoder
from tests.conftest import HPARAMS, ROOT, make_run
from tests.encoders.test_huggingface import save_model

TINY = ["--channels", "6", "--context_channels", "4", "--number_of_epochs=1"]
TINY += ["--num_workers", "0", "--batch_size", "4", "--prediction_steps", "2"]
TINY += ["--crop_samples", "4000"]
CPU = ["--device", "cpu", "--noprogressbar"]


def noise(path, frames, rate=16000, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(seed).standard_normal(frames)
    sf.write(path, wave.astype(np.float32), rate)
    return path


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def audio(tmp_path):
    """a.wav of 8000 samples, b.wav of 22050 frames at 22.05 kHz: a second."""
    noise(tmp_path / "a.wav", 8000)
    noise(tmp_path / "b.wav", 22050, 22050, 1)
    return tmp_path


def manifest_of(folder, text, name="train.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


# --- C1: manifests of one's own ----------------------------------------------

PLAIN = (
    "ID,wav,num_samples,digit\n"
    "a,$data_root/a.wav,8000,one\nb,$data_root/b.wav,16000,two\n"
)
WRITTEN = {
    "as ours": PLAIN,
    "byte order mark": "\ufeff" + PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "Excel's first line": "sep=;\n" + PLAIN.replace(",", ";"),
    "Excel's line ends": PLAIN.replace("\n", "\r\n"),
    "empty lines of a sheet": PLAIN.replace(",", ";") + ";;;\n\n",
    "floats": PLAIN.replace("000,", "000.0,"),
    "decimal commas": PLAIN.replace(",", ";").replace("000;", "000,0;"),
    "blanks": PLAIN.replace(",", ", "),
    "index of a data frame": ",ID,wav,num_samples,digit\n"
    "0,a,$data_root/a.wav,8000,one\n1,b,$data_root/b.wav,16000,two\n",
    "empty lines first": "\n\r\n" + PLAIN,
    "tabs in front": PLAIN.replace(",", "\t")
    .replace("ID", "\tID")
    .replace("a\t", "0\ta\t")
    .replace("\nb", "\n1\tb"),
    "a semicolon in a name": PLAIN.replace("digit", 'digit,"a;b;c;d;e"')
    .replace("one", 'one,"1;2"')
    .replace("two", "two,"),
    "without num_samples": "ID,duration,wav,digit\n"
    "a,7.5,{data_root}/a.wav,one\nb,7.5,$data_folder/b.wav,two\n",
    "json": '{"a": {"wav": "{data_root}/a.wav", "digit": "one"},'
    '"b": {"wav": "{data_root}/b.wav", "num_samples": 16000.0,'
    ' "digit": "two"}}',
    "json of read_audio": '\ufeff{"a": {"wav": {"file": "{data_root}/a.wav"},'
    '"digit": "one"}, "b": {"wav": {"file": "{data_root}/b.wav", "start": 0,'
    ' "stop": 22050}, "digit": "two"}}',
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_c1_own_manifests_are_read(audio, kind):
    name = "train.json" if "json" in kind else "train.csv"
    path = manifest_of(audio, WRITTEN[kind], name)
    rows = read_manifest(path, audio)
    assert {n: row["num_samples"] for n, row in rows.items()} == {
        "a": 8000,
        "b": 16000,
    }
    assert [row["duration"] for row in rows.values()] == [0.5, 1.0]
    classes = classes_of(path, audio, "digit")
    assert classes == ["one", "two"]
    dataset = make_dataset(path, audio, label="digit", classes=classes)
    assert [len(item["sig"]) for item in dataset] == [8000, 16000]


def test_c1_start_and_stop_are_frames_of_the_file(audio):
    """As in SpeechBrain: samples at the file's own rate; all if they agree."""
    path = manifest_of(
        audio,
        "ID,wav,start,stop,num_samples\n"
        "a1,$data_root/a.wav,0,3000,3000\na2,$data_root/a.wav,3000,8000,8000\n"
        "a3,$data_root/a.wav,5000,,\na4,$data_root/a.wav,0,0,\n"
        "b1,$data_root/b.wav,11025,22050,\n",
    )
    whole = read_audio(audio / "a.wav"), read_audio(audio / "b.wav")
    items = {item["id"]: item["sig"] for item in make_dataset(path, audio)}
    assert torch.equal(items["a1"], whole[0][:3000])
    assert torch.equal(items["a2"], whole[0][3000:])
    assert torch.equal(items["a3"], whole[0][5000:])
    assert torch.equal(items["a4"], whole[0])
    torch.testing.assert_close(items["b1"], whole[1][8000:])
    crops = make_dataset(path, audio, KeyedCrop(160, random=False))
    assert torch.equal(crops[1]["sig"], whole[0][3000:3160])
    encoder = GreedyEncoder(4, 0)
    description = {"sha256": "0", "arguments": {}}
    store = encode_manifest(encoder, description, path, audio, audio / "store")
    lone = encoder(whole[0][None, 3000:], layers=["module1"], sample=False)
    row = store["module1"][torch.tensor([store.ids.index("a2")])][0]
    expected = lone["module1"].mean[0].mean(0)
    torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


WRONG = {
    "a length": (
        PLAIN.replace("8000", "7000"),
        "csv:2 states num_samples 7000",
    ),
    "a length beyond": (PLAIN.replace("16000", "16001"), "csv:3 states"),
    "no number": (
        PLAIN.replace("8000", "many"),
        "csv:2 has the num_samples 'm",
    ),
    "a part of one": (PLAIN.replace("8000", "0.5"), "not a whole number"),
    "thousands": (PLAIN.replace("8000", '"8,000,0"'), "not a whole number"),
    "Excel's thousands": (PLAIN.replace("8000", '"8,000"'), "'8,000': not a"),
    "thousands with points": (PLAIN.replace("16000", "16.000"), "csv:3 has"),
    "lines count": ("\n\n" + PLAIN.replace("8000", "x"), "csv:4 has the num"),
    "not a number": (PLAIN.replace("8000", "nan"), "not a whole number"),
    "negative": (PLAIN.replace("8000", "-8000"), "not a whole number"),
    "no column": (
        PLAIN.replace("wav,num", "path,num"),
        "no wav, but ID, path",
    ),
    "no header": ("a,b.wav,3\n", "it has no wav"),
    "nothing": ("", "it has no wav"),
    "no row": ("ID,wav\n", "lists no utterance"),
    "a short row": (PLAIN + "c,$data_root/a.wav\n", "csv:4 has fewer cells"),
    "a long row": (PLAIN + "c,$data_root/a.wav,8000,1,2\n", "csv:4 has more"),
    "a row cut": (PLAIN + "c\n", "csv:4 has fewer cells"),
    "an empty cell": (PLAIN + "c,,8000,one\n", "csv:4 has no wav"),
    "two of an ID": (
        PLAIN + "a,$data_root/a.wav,8000,1\n",
        "csv:4 has the ID a",
    ),
    "two columns": (PLAIN.replace("digit", "wav"), "has wav twice"),
    "a quote": (PLAIN + '"c,x,1,2\n', "cannot be read: unexpected"),
    "no file": (PLAIN.replace("a.wav", "z.wav"), "csv:2: .*z.wav"),
    "not UTF-8": (PLAIN.replace("one", "é"), r"not UTF-8 \(byte 0xe9"),
    "stop beyond": (
        "ID,wav,start,stop\na,$data_root/a.wav,0,9000\n",
        "csv:2 has start 0 and stop 9000: not within",
    ),
    "stop first": ("ID,wav,start,stop\na,$data_root/a.wav,9,3\n", "not within"),
    "seconds": (
        "ID,wav,start,stop\na,$data_root/a.wav,0.1,0.3\n",
        "csv:2 has the start '0.1': not a whole number of samples",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_c1_wrong_manifests_name_file_line_and_column(audio, kind):
    text, message = WRONG[kind]
    encoding = "latin-1" if kind == "not UTF-8" else "utf-8"
    path = manifest_of(audio, text, encoding=encoding)
    with pytest.raises(ValueError, match=message) as caught:
        make_dataset(path, audio)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"wav": "$data_root/a.wav"}, "a": {"wav": "$data_root/b.wav"}}',
        '{"a": {"wav": "$data_root/a.wav", "wav": "b.wav"}}',
        "[]",
        '{"a": 1}',
        '{"a": {"file": "a.wav"}}',
        '{"a": ',
        "{}",
    ],
)
def test_c1_wrong_json_names_the_file(audio, text):
    path = manifest_of(audio, text, "train.json")
    with pytest.raises(ValueError, match="train.json"):
        read_manifest(path, audio)


@pytest.mark.parametrize("label", ["num_samples", "duration", "wav", "start"])
def test_c1_columns_of_the_audio_are_no_labels(audio, label):
    path = manifest_of(audio, PLAIN)
    with pytest.raises(ValueError, match=f"no column '{label}'; it has digit"):
        make_dataset(path, audio, label=label, classes=["a", "b"])


def test_c1_labels_of_frames_fit_the_length(audio):
    text = PLAIN.replace("one", "1 2 3").replace("digit", "phones")
    path = manifest_of(audio, text.replace("two", ""))
    with pytest.raises(ValueError, match="a in .*train.csv has 3 phones.* 48"):
        make_dataset(path, audio, None, "phones", list("0123"), "frames")


def test_c1_labels_of_frames_may_be_names(audio):
    text = PLAIN.replace("one", "AA B").replace("two", "SIL AA")
    path = manifest_of(audio, text)
    assert classes_of(path, None, "digit", "frames") == ["AA", "B", "SIL"]


def test_c1_a_cell_of_an_hour(tmp_path):
    """Python's csv would refuse cells of more than 131,072 letters."""
    path = manifest_of(tmp_path, f"ID,phones\na,{'12 ' * 100000}\n")
    assert len(read_csv(path, ["ID"])[0][1]["phones"]) > 200000


def test_c1_one_reader_for_all():
    """Nothing else of the package opens a manifest."""
    for path in (ROOT / "speechbrain_sim").rglob("*.py"):
        text = path.read_text()
        if path.name != "tables.py":
            assert "from_csv(" not in text and "DictReader" not in text, path


# --- C2, C4, E12: phones and problems ----------------------------------------


def write_libri(folder, speakers=(19, 26), number=20):
    """A corpus in LibriSpeech's layout, of noise."""
    subset = folder / "LibriSpeech/train-clean-100"
    lines = ["; ID |SEX| SUBSET"]
    for speaker in speakers:
        chapter = subset / f"{speaker}/7"
        names = [f"{speaker}-7-{i:04d}" for i in range(number)]
        for i, name in enumerate(names):
            noise(chapter / f"{name}.flac", 8000, seed=speaker + i)
        text = "".join(f"{name} WORD\n" for name in names)
        (chapter / f"{speaker}-7.trans.txt").write_text(text)
        lines.append(f"{speaker} | F | train-clean-100")
    (folder / "LibriSpeech/SPEAKERS.TXT").write_text("\n".join(lines))
    phones = ["ID,start,end,phone"]
    for path in sorted(subset.rglob("*.flac")):
        phones += [f"{path.stem},0,0.2,AA", f"{path.stem},0.2,0.5,B"]
    (folder / "phones.csv").write_text("\n".join(phones))
    return folder


@pytest.fixture(scope="module")
def libri(recipes, tmp_path_factory):
    """A corpus in LibriSpeech's layout, and a run on it."""
    folder = write_libri(tmp_path_factory.mktemp("libri"))
    data = ["--data_folder", str(folder / "data")]
    write_libri(folder / "data")
    options = [*data, "--output_folder", str(folder / "run"), *TINY, *CPU]
    options += ["--min_samples", "8000"]
    yaml = HPARAMS / "LibriSpeech/pretrain.yaml"
    recipes["pretrain"].main([str(yaml), *options])
    return folder


def test_c2_phones_have_their_names(recipes, libri, tmp_path):
    data = libri / "data"
    argv = [str(HPARAMS / "LibriSpeech/probe.yaml"), "--encoder", "logmel"]
    argv += ["--data_folder", str(data), "--phones", str(data / "phones.csv")]
    argv += ["--output_folder", str(tmp_path / "probe"), "--label", "phones"]
    argv += ["--manifest_folder", str(tmp_path / "elsewhere")]
    argv += ["--min_samples", "80"]
    recipes["probe"].main([*argv, *CPU])
    result = json.loads((tmp_path / "probe/probe_phones.json").read_text())
    names = ["SIL", "SPN", "AA"]
    assert result["class_names"][:3] == names
    config = json.loads((tmp_path / "probe/config.json").read_text())
    assert config["parts"]["probe_phones"]["classes"][:3] == names


def test_c2_damaged_names_are_named(tmp_path):
    (tmp_path / "phones.txt").write_text("0 SIL\n1\n")
    with pytest.raises(ValueError, match="phones.txt is not a number and a na"):
        name_phones("phones", ["0", "1"], tmp_path)


@pytest.mark.parametrize("content", ["é", "text of the file " * 3000])
def test_c4_a_textgrid_is_not_in_the_message(tmp_path, content):
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n'
    path = tmp_path / "a.TextGrid"
    path.write_bytes((head + content * 2000)[:40000].encode("latin-1"))
    labels, ((where, problem, remedy),) = read_phones(tmp_path, {"a": 8000})
    assert where == path and len(problem) < 250 and not labels
    if content == "é":
        assert "byte 0xe9 at" in problem and remedy == "Save it as UTF-8."


def test_e12_problems_are_counted_by_kind(tmp_path):
    problems = [
        Problem(f"/data/{i}", f"{i} has no transcript.", "Get it.")
        for i in range(250)
    ]
    problems += [Problem("/data/x", "There is no such file.", "Make it.")] * 2
    with pytest.raises(ValueError, match="252 problems") as caught:
        refuse(problems, tmp_path)
    text = str(caught.value)
    assert "  250 of this kind:\n    /data/0: 0 has no" in text
    assert "  2 of this kind:\n    /data/x: There is no such file." in text
    assert text.count("/data/") == 4
    assert len(rows_of(tmp_path / "problems.csv")) == 252


def test_e12_bad_audio_is_counted_by_reason(tmp_path):
    data = tmp_path / "data"
    for i in range(12):
        noise(data / f"{i}.wav", 1000 + i)
    (data / "empty.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="13 audio files") as caught:
        prepare_folder(data, tmp_path / "save", 4000)
    assert "12 of this kind" in str(caught.value)
    assert "1 of this kind" in str(caught.value)


# --- C5: weights in several files --------------------------------------------


def test_c5_weights_in_several_files(tmp_path):
    import transformers

    folder = save_model(tmp_path / "whole", "hubert", "base")
    model = transformers.HubertModel.from_pretrained(folder)
    split = Path(shutil.copytree(folder, tmp_path / "split"))
    (split / "model.safetensors").unlink()
    model.save_pretrained(split, max_shard_size="3KB")
    index = split / "model.safetensors.index.json"
    assert index.exists()
    whole, other = load_encoder(folder), load_encoder(split)
    wav = torch.randn(1, 4000)
    a, b = (encoder(wav)["hidden2"].mean for encoder, _ in (whole, other))
    assert torch.equal(a, b)
    settings = other[1]["arguments"]["preprocessor"]
    assert settings["do_normalize"] is True
    # the last shard counts as the first does
    shards = sorted(split.glob("model-*.safetensors"))
    changed = {k: v + 1 for k, v in model.state_dict().items()}
    model.load_state_dict(changed)
    model.save_pretrained(tmp_path / "changed", max_shard_size="3KB")
    shutil.copy(tmp_path / "changed" / shards[-1].name, shards[-1])
    assert load_encoder(split)[1]["sha256"] != other[1]["sha256"]
    shards[-1].unlink()
    with pytest.raises(FileNotFoundError, match=shards[-1].name):
        load_encoder(split)
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json is not an index"):
        load_encoder(split)


# --- E1, E2, E3: options of a corpus, labels of a folder ---------------------


def write_digits(folder, speakers=("ann", "bob", "eve"), number=10):
    for s, speaker in enumerate(speakers):
        for i in range(number):
            noise(folder / speaker / f"{i}.wav", 24000, seed=100 * s + i)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "data")


def write_labels(path, data, **columns):
    """A csv of all files; columns are functions of the path."""
    names = sorted(p.relative_to(data).as_posix() for p in data.rglob("*.wav"))
    lines = [",".join(["path", *columns])]
    for name in names:
        cells = [function(Path(name)) for function in columns.values()]
        lines.append(",".join([name, *cells]))
    path.write_text("\n".join(lines))
    return path


def sides_of(save):
    return {
        row["ID"]: split
        for split in ("train", "valid", "test")
        for row in rows_of(save / f"{split}.csv")
    }


def test_e3_any_column_is_a_label(digits, tmp_path):
    prepare_folder(digits, tmp_path / "plain", 1600, speakers="folder")
    prepare_folder(digits, tmp_path / "none", 1600)
    speaker = {"speaker": lambda path: path.parent.name}
    labels = {
        "digit": lambda path: path.stem if path.stem != "3" else "",
        "sex": lambda path: "m" if path.parent.name == "bob" else "f",
        "duration": lambda path: "7",  # none of ours is replaced
    }
    both = write_labels(tmp_path / "both.csv", digits, **speaker, **labels)
    prepare_folder(digits, tmp_path / "both", 1600, speakers=both)
    row = rows_of(tmp_path / "both/train.csv")[0]
    assert row["sex"] in "fm" and "digit" in row and row["duration"] == "1.5"
    assert sides_of(tmp_path / "both") == sides_of(tmp_path / "plain")
    alone = write_labels(tmp_path / "alone.csv", digits, **labels)
    prepare_folder(digits, tmp_path / "alone", 1600, speakers=alone)
    assert sides_of(tmp_path / "alone") == sides_of(tmp_path / "none")
    assert "speaker" not in rows_of(tmp_path / "alone/train.csv")[0]
    assert len(classes_of(tmp_path / "both/train.csv", None, "digit")) > 5


def test_e3_a_row_has_the_cells_of_its_header(digits, tmp_path):
    speaker = {"speaker": lambda path: path.parent.name}
    table = write_labels(tmp_path / "a.csv", digits, **speaker)
    text = table.read_text()
    header, rest = text.split("\n", 1)
    table.write_text(f"{header}\n" + rest.replace("\n", ",\n"))
    prepare_folder(digits, tmp_path / "a", 1600, speakers=table)
    table.write_text(f"{header}\n" + rest.replace("\n", ",more\n", 1))
    with pytest.raises(ValueError, match="a.csv:2 has more cells than"):
        prepare_folder(digits, tmp_path / "b", 1600, speakers=table)


def test_e3_a_split_is_honoured(digits, tmp_path):
    def side(path):
        return {"0": "test", "1": "valid"}.get(path.stem, "train")

    table = write_labels(tmp_path / "a.csv", digits, split=side)
    prepare_folder(digits, tmp_path / "a", 1600, speakers=table)
    assert {n.split("-")[1]: s for n, s in sides_of(tmp_path / "a").items()}[
        "0"
    ] == "test"
    assert len(rows_of(tmp_path / "a/test.csv")) == 3
    assert "split" not in rows_of(tmp_path / "a/test.csv")[0]
    for wrong, message in {
        "dev": "a.csv:2: ann/0.wav has the split 'dev', not one of train",
        "": "has the split ''",
        "train": "too few for train, valid, test",
    }.items():
        table = write_labels(table, digits, split=lambda path, w=wrong: w)
        with pytest.raises(ValueError, match=message):
            prepare_folder(digits, tmp_path / "b", 1600, speakers=table)


@pytest.fixture(scope="module")
def study(recipes, tmp_path_factory):
    """A study of sexes with one damaged file, its options given once."""
    folder = tmp_path_factory.mktemp("study")
    data = write_digits(folder / "data")
    (data / "ann/99.wav").write_bytes(b"RIFF")
    sex = {"sex": lambda path: "m" if path.parent.name == "bob" else "f"}
    sides = {"0": "test", "1": "test", "2": "valid", "99": "valid"}
    sex["split"] = lambda path: sides.get(path.stem, "train")
    table = write_labels(folder / "sex.csv", data, **sex)
    epoch = "number_of_epochs: 1, batch_size: 4"
    small = f"{{channels: 6, context_channels: 4, {epoch}, num_workers: 0}}"
    argv = [str(HPARAMS / "Folder/study.yaml"), "--data_folder", str(data)]
    argv += ["--output_folder", str(folder / "out"), "--tools", "[delta]"]
    argv += ["--speakers", str(table), "--on_bad_audio", "skip"]
    argv += [
        "--systems",
        "{SIM: {yaml: pretrain.yaml}}",
        "--baseline",
        "null",
    ]
    argv += ["--labels", "{sex: {probe: {controls: 10}}}", "--inside", "[SIM]"]
    argv += ["--weights_label", "null", "--layers", "[module1]"]
    argv += [
        "--clip_samples",
        "4000",
        "--clips",
        "3",
        "--pairs",
        "4",
        "--smooth_pairs",
        "3",
    ]
    argv += ["--pretrain_options", small]
    argv += ["--decode_options", f"{{{epoch}, num_workers: 0}}", *CPU]
    recipes["study"].main(argv)
    return folder / "out"


def test_e1_options_of_the_corpus_reach_every_part(study):
    prepared = list(study.rglob("prepare.json"))
    assert len(prepared) <= 3  # one per set of options
    sides = {}
    for record in prepared:
        made = json.loads(record.read_text())["arguments"]
        assert made["speakers"].endswith("sex.csv")
        for name, split in sides_of(record.parent).items():
            assert sides.setdefault(name, split) == split
        assert "sex" in rows_of(record.with_name("train.csv"))[0]
    decoder = next(study.rglob("decoder_module1/save/data.json"))
    trained = json.loads(decoder.read_text())[0]
    assert set(trained) <= {n for n, side in sides.items() if side == "train"}
    assert (study / "SIM_1/probe/probe_sex.json").exists()
    assert not list(study.rglob("SIM_1/save/prepare.json"))


def test_e2_bad_audio_is_skipped_everywhere(study):
    for record in study.rglob("prepare.json"):
        made = json.loads(record.read_text())
        assert made["bad_audio"] == 1
        assert made["arguments"]["on_bad_audio"] == "skip"


# --- E10, E11: what an export states -----------------------------------------


def test_e10_a_layout_is_no_corpus(libri, tmp_path, caplog):
    about = load_encoder(libri / "run")[1]
    assert about["corpus"] is None
    export_model(libri / "run", tmp_path / "model")
    assert "give --data and --licence" in caplog.text
    text = (tmp_path / "model/README.md").read_text()
    assert "LibriSpeech" not in text and "cc-by-4.0" not in text
    assert "license: other" in text and "datasets:" not in text
    export_model(libri / "run", tmp_path / "b", data="Mine", licence="mit")
    text = (tmp_path / "b/README.md").read_text()
    assert "Trained on: Mine" in text and "license: mit" in text


def test_e10_a_new_run_is_named_by_its_audio(
    recipes, libri, tmp_path, monkeypatch
):
    wav = next((libri / "data").rglob("*.flac"))
    known = {wav.name: sha256(wav)[:16]}
    monkeypatch.setitem(CONTENTS, "LibriSpeech", known)
    options = ["--data_folder", str(libri / "data"), *TINY, *CPU]
    options += ["--output_folder", str(tmp_path / "run"), "--model", "random"]
    yaml = HPARAMS / "LibriSpeech/pretrain.yaml"
    recipes["pretrain"].main([str(yaml), *options, "--min_samples", "8000"])
    assert load_encoder(tmp_path / "run")[1]["corpus"] == "LibriSpeech"


def test_e10_a_corpus_is_recognised_by_its_audio(tmp_path, monkeypatch):
    wav = noise(tmp_path / "known.wav", 8000)
    path = manifest_of(tmp_path, "ID,wav\nknown,$data_root/known.wav\n")
    for name in CONTENTS:
        places = [path, tmp_path / "none.csv"], tmp_path
        assert recognise(name, *places) is None  # no file that is known
        monkeypatch.setitem(CONTENTS, name, {"known.wav": "0" * 16})
        assert recognise(name, *places) is None
    monkeypatch.setitem(CONTENTS, name, {"known.wav": sha256(wav)[:16]})
    assert recognise(name, *places) == name
    assert recognise("Synthetic", *places) is None
    assert recognise("Mine", *places) == "Mine"


@pytest.mark.data
@pytest.mark.parametrize(
    "corpus", ["LibriSpeechExcerpt", "ArtificialSpeech", "FSDD"]
)
def test_e10_the_real_ones_are_recognised(corpus, tmp_path):
    data = ROOT.parent / "shared/data" / corpus
    if not data.is_dir():
        pytest.skip(f"../shared/data/{corpus} is absent")
    name = corpus.removesuffix("Excerpt")
    wavs = [p for p in data.rglob("*.*") if p.name in CONTENTS[name]]
    lines = [f"{n},{wav}" for n, wav in enumerate(wavs)]
    path = manifest_of(tmp_path, "\n".join(["ID,wav", *lines]))
    assert len(wavs) >= 2 and recognise(name, [path], data) == name


def test_e11_two_probes_of_one_column(recipes, digits, tmp_path):
    run = make_run(tmp_path / "made").run
    parents = {"speaker": lambda path: path.parent.name}
    sexes = {"speaker": lambda path: "m" if path.parent.name == "bob" else "f"}
    for name, column in {"speaker": parents, "sex": sexes}.items():
        table = write_labels(tmp_path / f"{name}.csv", digits, **column)
        argv = [str(HPARAMS / "Folder/probe.yaml"), "--encoder", str(run)]
        argv += ["--data_folder", str(digits), "--speakers", str(table)]
        argv += ["--label_name", name]
        argv += ["--output_folder", str(tmp_path / name)]
        recipes["probe"].main([*argv, *CPU])
    probes = [tmp_path / "speaker", tmp_path / "sex"]
    config = export_model(run, tmp_path / "model", probes)
    assert {"probe_speaker", "probe_sex"} <= config["parts"].keys()
    text = (tmp_path / "model/README.md").read_text()
    assert "| sex, 2 classes |" in text and "| speaker, 3 classes |" in text
    with pytest.raises(ValueError, match="--label_name"):
        recipes["probe"].main([*argv, "--label_name", "a/b"])
    shutil.copytree(probes[1], tmp_path / "again")
    with pytest.raises(ValueError, match="a --label_name of its own"):
        export_model(run, tmp_path / "c", [*probes, tmp_path / "again"])


# --- F3, F5, H5, H15: the data of a result -----------------------------------


def overwrite(folder, name="a.wav", seed=9):
    """Writes other audio of the same length, size and dates."""
    path = folder / name
    before = path.stat()
    noise(path, 8000, seed=seed + ord(name[0]))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_f3_prepared_manifests_depend_on_contents(tmp_path):
    for name in "abc":
        noise(tmp_path / f"data/{name}.wav", 8000, seed=ord(name))
    places = tmp_path / "data", tmp_path / "save", 1600

    def content():
        prepare_folder(*places)
        made = json.loads((tmp_path / "save/prepare.json").read_text())
        return made["splits"]["train"]["content"], made["listing"]

    first = content()
    assert content() == first
    for name in "abc":
        overwrite(tmp_path / "data", f"{name}.wav")
    assert content()[0] != first[0] and content()[1] != first[1]


def test_f3_features_depend_on_contents_and_front_end(audio):
    path = manifest_of(audio, PLAIN)
    encoder, about = load_encoder("logmel")
    places = path, audio, audio / "store"

    def features(**changes):
        store = encode_manifest(encoder, {**about, **changes}, *places)
        return store, store["logmel"][:]

    store, first = features()
    made = (audio / "store/logmel.npy").stat().st_mtime_ns
    features()
    assert (audio / "store/logmel.npy").stat().st_mtime_ns == made
    moved = Path(shutil.copytree(audio, audio / "moved"))
    assert manifest_hash(moved / "train.csv", moved) == manifest_hash(
        path, audio
    )
    overwrite(audio)
    assert not torch.equal(features()[1][0], first[0])
    changed = (audio / "store/logmel.npy").stat().st_mtime_ns
    features(arguments={**about["arguments"], "n_mels": 40})
    assert (audio / "store/logmel.npy").stat().st_mtime_ns > changed
    assert store.made_of["version"] and store.made_of["arguments"]


def test_f3_results_depend_on_the_version(tmp_path, monkeypatch):
    results = iter("ab")
    path = tmp_path / "a.json"
    assert cached_result(path, {}, lambda: next(results)) == "a"
    assert cached_result(path, {}, lambda: next(results)) == "a"
    monkeypatch.setattr("speechbrain_sim.files.__version__", "0.0.0")
    assert cached_result(path, {}, lambda: next(results)) == "b"


def test_f3_probes_are_made_anew_of_other_audio(recipes, tmp_path):
    data = write_digits(tmp_path / "data", number=6)
    argv = [str(HPARAMS / "Folder/probe.yaml"), "--encoder", "logmel", *CPU]
    argv += ["--output_folder", str(tmp_path / "probe")]
    argv += ["--data_folder", str(data)]
    result = tmp_path / "probe/probe_speaker.json"
    recipes["probe"].main(argv)
    first, made = json.loads(result.read_text()), result.stat().st_mtime_ns
    moved = tmp_path / "moved"
    data.rename(moved)
    argv[-1] = str(moved)
    recipes["probe"].main(argv)
    assert result.stat().st_mtime_ns == made  # these very data, elsewhere
    for path in moved.rglob("*.wav"):
        noise(path, 24000, seed=hash(path.stem) % 1000 + 5000)
    recipes["probe"].main(argv)
    again = json.loads(result.read_text())
    assert again["manifests"] != first["manifests"]


def test_f3_a_piece_in_the_middle_counts(tmp_path):
    path = tmp_path / "long.wav"
    noise(path, 16000 * 30)

    def hashed():
        _content_hash.cache_clear()  # kernels before 6.13 date by 4 ms
        return content_hash(path)

    before, content = hashed(), bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100000] = bytes(100000)
    path.write_bytes(content)
    assert hashed() != before
    for size in (0, 1, 65536, 65537, 1 << 20, 1 << 22):
        path.write_bytes(bytes(size))
        first = hashed()
        path.write_bytes(bytes(max(0, size - 1)) + b"x")
        assert hashed() != first
    content = bytearray(1 << 20)
    for place in (0, 65535, 70000, 555555, (1 << 20) - 2):
        before = hashed()
        content[place] = 1  # any byte of half a minute counts
        path.write_bytes(content)
        assert hashed() != before


def test_f5_supervised_encoders_train_on_train():
    yamls = list(HPARAMS.glob("[A-Z]*/supervised*.yaml"))
    assert len(yamls) == 5
    for path in yamls:
        options = {"data_folder": "data", "output_folder": "out"}
        settings, _ = read_settings(path, options, {})
        assert Path(settings["train_csv"]).name == "train.csv", path
        assert Path(settings["valid_csv"]).name == "valid.csv", path


def test_h5_a_run_goes_on_with_its_own_data(recipes, tmp_path):
    data = write_digits(tmp_path / "data")
    out = tmp_path / "out"
    argv = [str(HPARAMS / "Folder/pretrain.yaml"), *TINY, *CPU]
    argv += ["--output_folder", str(out), "--data_folder", str(data)]

    def resume(epochs):
        recipes["pretrain"].main([*argv, f"--number_of_epochs={epochs}"])
        return load_encoder(out)[1]["epochs"]

    assert resume(1) == 1
    data.rename(tmp_path / "moved")
    data = tmp_path / "moved"
    argv[-1] = str(data)
    assert resume(2) == 2
    extra = noise(data / "ann/77.wav", 24000, seed=77)
    with pytest.raises(ValueError, match="added in .*train.csv"):
        resume(3)
    extra.unlink()
    train = sorted(json.loads((out / "save/data.json").read_text())[0])
    path = data / f"{train[0].replace('-', '/')}.wav"
    content = path.read_bytes()
    noise(path, 24000, seed=1234)
    with pytest.raises(ValueError, match=f"1 replaced in .* as {train[0]}"):
        resume(3)
    path.write_bytes(content)
    path.rename(data / "kept")
    with pytest.raises(ValueError, match="1 removed in .*train.csv"):
        resume(3)


def test_h5_the_label_counts_but_no_other(audio):
    path = manifest_of(audio, PLAIN)
    kept = audio / "data.json"
    check_same_data(kept, [path], audio, False, ["digit"])
    path = manifest_of(audio, PLAIN.replace("two", "six"))
    with pytest.raises(ValueError, match="1 replaced in .* such as b"):
        check_same_data(kept, [path], audio, True, ["digit"])
    text = PLAIN.replace("digit", "digit,sex")
    text = text.replace("one", "one,f").replace("two", "two,m")
    check_same_data(kept, [manifest_of(audio, text)], audio, True, ["digit"])


def test_h5_a_file_that_vanishes_is_named(audio):
    dataset = make_dataset(manifest_of(audio, PLAIN), audio)
    (audio / "b.wav").unlink()
    with pytest.raises(ValueError, match="b.wav"):
        dataset[1]
    noise(audio / "b.wav", 900)
    with pytest.raises(ValueError, match="b.wav has fewer than the 16000"):
        dataset[1]
    with pytest.raises(ValueError, match="csv:3: .*c.wav cannot be read"):
        text = PLAIN.replace("b.wav", "c.wav")
        row_hashes(manifest_of(audio, text), audio)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_h15_a_manifest_that_changed_since(tmp_path, kept):
    rows = [
        {"ID": str(i), "wav": noise(tmp_path / f"{i}.wav", 8000, seed=i)}
        for i in range(6)
    ]
    save = tmp_path / "save"
    write_manifests({"train": rows}, save, tmp_path, 1600)
    path = save / "train.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:kept]))
    for use in (
        lambda: read_manifest(path, tmp_path),
        lambda: classes_of(path, None, "wav"),
        lambda: row_hashes(path, tmp_path),
    ):
        with pytest.raises(ValueError, match="train.csv"):
            use()
    write_manifests({"train": rows}, save, tmp_path, 1600)
    assert len(read_manifest(path, tmp_path)) == 6


# --- H18: small files that are damaged ---------------------------------------

SMALL = ["store.json", "index.npz", "done.npy", "module1.npy", "manifest.csv"]


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "null", "{}"])
@pytest.mark.parametrize("name", [*SMALL, "statistics.npz"])
def test_h18_a_damaged_store_is_named_or_made_anew(
    audio, name, damage, tmp_path
):
    path = manifest_of(audio, PLAIN)
    encoder = GreedyEncoder(4, 0)
    about = {"sha256": "0", "arguments": {}}
    places = encoder, about, path, audio, audio / "store"
    store = encode_manifest(*places)
    whole = store["module1"][:], store.statistics("module1")
    target = audio / "store" / name
    content = target.read_bytes()
    target.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "zeros": bytes(len(content)),
            "empty": b"",
        }.get(damage, damage.encode())
    )

    def use():
        store = ActivationStore.open(audio / "store")
        store.labels("digit", ["one", "two"])
        return store.done, store["module1"][:], store.statistics("module1")

    if (name, damage) != ("manifest.csv", "cut"):
        with pytest.raises(ValueError, match=name):
            use()
    store = encode_manifest(*places)
    try:
        store["module1"][:], store.statistics("module1"), store.done
    except ValueError as error:
        assert name in str(error) and "delete it" in str(error)
        shutil.rmtree(audio / "store")
        store = encode_manifest(*places)
    assert torch.equal(store["module1"][:], whole[0])


def test_h18_results_and_arrays(tmp_path):
    path = tmp_path / "delta.json"
    path.write_text('{"made_of": ')
    with pytest.raises(ValueError, match="delta.json is not json.*delete it"):
        cached_result(path, {}, list)
    path.write_text("[" * 100000)
    with pytest.raises(ValueError, match="delta.json is not json"):
        cached_result(path, {}, list)
    path.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ValueError, match="delta.json is not json"):
        cached_result(path, {}, list)
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no arrays")
        with pytest.raises(ValueError, match=f"{name} is not arrays"):
            read_arrays(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npy")
    with pytest.raises(ValueError, match="nan.json cannot be written"):
        cached_result(tmp_path / "nan.json", {}, lambda: [float("nan")])


def test_h18_a_damaged_record_of_a_run(recipes, libri):
    path = libri / "run/hyperparams.yaml"
    whole = path.read_text()
    argv = [str(HPARAMS / "LibriSpeech/pretrain.yaml"), *TINY, *CPU]
    argv += ["--output_folder", str(libri / "run"), "--min_samples", "8000"]
    argv += ["--data_folder", str(libri / "data")]
    for text in ("", "a: [", "- a"):
        path.write_text(text)
        with pytest.raises(ValueError, match="hyperparams.yaml is not"):
            recipes["pretrain"].main(argv)
    path.write_text(whole)


def test_g7_scipy_has_what_is_used():
    text = (ROOT / "setup.py").read_text()
    assert '"scipy>=1.15"' in text
