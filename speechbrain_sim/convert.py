"""Many files at once: audio -> latents, and latents -> audio.

Both go on where they were when they are started again.
"""

import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from speechbrain_sim.data.audio import SAMPLE_RATE, BadAudio
from speechbrain_sim.features import check_file, write_latents
from speechbrain_sim.files import read_json, write_json
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import encoder_of
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.randomness import keyed_generator

#: files that are taken from a folder
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
LATENTS = (".npy", ".safetensors")
#: what lies beside latents: settings, and the samples of every recording
RECORD = "encode.json"


def encode_files(
    source,
    inputs,
    folder,
    layer,
    kind="npy",
    sample=False,
    device="cpu",
    on_bad_audio="fail",
):
    """Encodes audio files into one file of latents each.

    `a/b.wav` of a folder becomes `<folder>/a/b.npy`, and encode.json records
    the settings and the samples of every recording. Files that are there are
    skipped.

    Arguments
    ---------
    source : str or Path
        The encoder: see `speechbrain_sim.models.load.load_encoder`.
    inputs : list of str or Path
        Audio files, and folders that are searched with all below them.
    folder : str or Path
        Where to.
    layer : str
        The layer.
    kind : str
        "npy" or "safetensors", see `write_latents`.
    sample : bool
        Draws from the posteriors (the same each time), rather than means.
    device : str
        Where to compute.
    on_bad_audio : str
        "fail": if the header of a file is bad, nothing is encoded. "skip": it
        is left out. A file that turns out to be bad while it is read is left
        out in any case, and "fail" raises at the end.

    Returns
    -------
    record, bad : (dict, list of BadAudio)
        The content of encode.json; what was left out.

    Raises
    ------
    FileNotFoundError
        If there is nothing to encode.
    ValueError
        If two files would become one, the folder holds latents of other
        settings or files, or for bad files.
    """
    encoder, description = load_encoder(source)
    if layer not in encoder.layer_names:
        names = ", ".join(encoder.layer_names)
        raise ValueError(f"There is no layer '{layer}'; there are {names}.")
    encoder, folder = encoder.to(device), Path(folder)
    paths, entries, bad = find_files(inputs, AUDIO), {}, []
    for name, path in paths.items():
        try:
            samples = check_file(encoder, path, [layer])
            entries[name] = {"audio": str(path.resolve()), "samples": samples}
        except BadAudio as error:
            bad.append(error)
    if on_bad_audio == "fail":
        _refuse(bad, "Nothing was encoded; --on-bad-audio skip leaves them out")
    settings = {
        "encoder": description["sha256"],
        "layer": layer,
        "format": kind,
        "sample": sample,
    }
    record = _join_record(folder / RECORD, settings, entries)
    record |= {
        "source": str(source),
        "hop": encoder.frame_geometry(layer)[0],
        "channels": encoder.channels_of(layer),
    }
    write_json(folder / RECORD, record)
    todo = {name: folder / f"{name}.{kind}" for name in entries}
    todo = {name: file for name, file in todo.items() if not file.exists()}
    for name, target in tqdm(todo.items(), "encoding", unit="file"):
        noise = keyed_generator("encode", name, device=device)
        options = {"sample": sample, "generator": noise}
        try:
            write_latents(encoder, paths[name], {layer: target}, **options)
        except BadAudio as error:
            bad.append(error)
    if on_bad_audio == "fail":
        _refuse(bad, "All others were encoded")
    return record, bad


def decode_files(source, inputs, folder, layer, device="cpu"):
    """Decodes files of latents into wav files (16 kHz, float).

    Each is as long as its recording, if encode.json is above the latents; else
    the shortest that encodes to as many frames. Files that are there are
    skipped.

    Arguments
    ---------
    source : str or Path
        A model with a decoder of the layer: see `SmoothInfoMax`.
    inputs : list of str or Path
        Files that `encode_files` wrote, and folders of such.
    folder : str or Path
        Where to: `a/b.npy` of a folder becomes `<folder>/a/b.wav`.
    layer, device : str
        See `encode_files`.

    Returns
    -------
    list of Path
        The wav files.

    Raises
    ------
    FileNotFoundError
        If there is nothing to decode.
    ValueError
        If there is no decoder, the latents are of another layer or encoder,
        or two files would become one.
    """
    model = SmoothInfoMax.from_pretrained(source, run_opts={"device": device})
    settings = {"encoder": encoder_of(model.config), "layer": layer}
    targets = {
        path: Path(folder, f"{name}.wav")
        for name, path in find_files(inputs, LATENTS).items()
    }
    for path, target in tqdm(targets.items(), "decoding", unit="file"):
        samples = _samples_of(path, settings)
        if target.exists():
            continue
        z = load_file(path)[layer] if path.suffix != ".npy" else np.load(path)
        wav = model.decode(torch.as_tensor(z)[None], layer, samples)[0]
        partial = target.with_name(f"{target.name}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            *(partial, wav.cpu().numpy(), SAMPLE_RATE),
            subtype="FLOAT",
            format="WAV",
        )
        os.replace(partial, target)
    return list(targets.values())


def find_files(inputs, endings):
    """Finds files, and names them without folder and ending.

    Arguments
    ---------
    inputs : list of str or Path
        Files, and folders that are searched with all below them.
    endings : tuple of str
        Which files of a folder are meant.

    Returns
    -------
    dict of str to Path
        By path below the folder that was given.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder, or none in a folder.
    ValueError
        If two files have one name.
    """
    found = {}
    for item in map(Path, inputs):
        files = [item] if item.is_file() else sorted(item.rglob("*"))
        files = [
            file
            for file in files
            if file == item
            or (file.suffix.lower() in endings and file.name[0] != ".")
        ]
        if not files:
            raise FileNotFoundError(
                f"{item} is no file, and no folder with {', '.join(endings)}."
            )
        for file in files:
            base = item.parent if file == item else item
            name = file.relative_to(base).with_suffix("").as_posix()
            if found.setdefault(name, file) != file:
                raise ValueError(
                    f"{found[name]} and {file} would both become '{name}': "
                    f"use two --out, or give a folder above both."
                )
    return found


def _join_record(path, settings, entries):
    """Joins what encode.json records with what is to be encoded."""
    record = read_json(path) if path.exists() else {**settings, "files": {}}
    for key, value in settings.items():
        if record[key] != value:
            raise ValueError(
                f"{path.parent} holds latents with the {key} {record[key]}, "
                f"not {value}: choose another --out."
            )
    for name, entry in entries.items():
        if record["files"].setdefault(name, entry) != entry:
            raise ValueError(
                f"{path.parent} holds '{name}' of {record['files'][name]}, not "
                f"{entry}: choose another --out."
            )
    return record


def _refuse(bad, rest):
    if bad:
        listed = "\n".join(map(str, bad))
        raise ValueError(f"{len(bad)} bad files. {rest}.\n{listed}")


def _samples_of(path, settings):
    """Length of a recording by its encode.json; None without one."""
    path = path.resolve()
    for folder in path.parents:
        if (folder / RECORD).exists():
            record = read_json(folder / RECORD)
            for key, value in settings.items():
                if record[key] != value:
                    raise ValueError(
                        f"{path} is of the {key} {record[key]}, not {value}."
                    )
            name = path.relative_to(folder).with_suffix("").as_posix()
            return record["files"].get(name, {}).get("samples")
    return None
