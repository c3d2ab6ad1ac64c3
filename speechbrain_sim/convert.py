"""Many files at once: audio -> latents, and latents -> audio.

Both go on where they were when they are started again.
"""

import os
from functools import lru_cache
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    run_on_main,
)

from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import SAMPLE_RATE, BadAudio
from speechbrain_sim.data.search import AUDIO, list_files
from speechbrain_sim.features import check_file, write_latents
from speechbrain_sim.files import (
    atomic,
    content_hash,
    file_of,
    lock_folder,
    read_arrays,
    read_json,
    write_json,
)
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import (
    DECODER,
    encoder_of,
    identity_of,
    parts_of,
)
from speechbrain_sim.models.load import load_encoder, plain
from speechbrain_sim.randomness import keyed_generator

#: endings of files of latents
LATENTS = (".npy", ".safetensors")
#: what lies beside latents: settings, and each recording; and beside wavs
RECORD, DECODED = "encode.json", "decode.json"


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
    """Encodes audio files; skips those that are encoded.

    Under torch.distributed each rank encodes a share, the longest files first.
    `a/b.wav` of a folder becomes `<folder>/a/b.npy`; encode.json records the
    settings, and content and samples of each recording. Returns its content,
    and a list of BadAudio left out. Raises a FileNotFoundError without files; a
    ValueError for two of one name, latents of others, a bad file; a
    BlockingIOError while another command works in the folder.

    Arguments
    ---------
    source, inputs : str or Path, list of str or Path
        See `load_encoder`; audio files, and folders, see `find_files`.
    folder, layer, device : str
        Where to; the layer; where to compute.
    kind, sample : str, bool
        "npy" or "safetensors"; draws, the same each time, rather than means.
    on_bad_audio : str
        "fail": if a header is bad, nothing is encoded. "skip": it is left out.
        A file that is bad inside is left out; "fail" raises at the end.
    """
    encoder, description = load_encoder(source)
    if encoder.origin(layer) == layer:  # codes beside it make no difference
        encoder, description = plain(encoder, description)
    encoder, folder = encoder.to(device), Path(folder)
    paths = find_files(inputs, AUDIO)
    entries, bad = _describe(paths, encoder, layer)
    _refuse(on_bad_audio, bad, "Nothing was encoded (--on-bad-audio skip)")
    settings = {"encoder": description["sha256"], "layer": layer}
    settings |= {"format": kind, "sample": sample}
    record = _join_record(folder / RECORD, settings, entries)
    record["hop"] = encoder.frame_geometry(layer)[0]
    record["channels"] = encoder.channels_of(layer)
    run_on_main(write_json, (folder / RECORD, record))
    targets = {name: folder / f"{name}.{kind}" for name in entries}
    left, failed = _missing(targets, entries), {}
    for name in Bar(_share(left), "encoding", unit="file"):
        place = paths[name], {layer: targets[name]}
        noise = keyed_generator("encode", name, device=device)
        try:
            write_latents(encoder, *place, sample=sample, generator=noise)
        except BadAudio as error:
            failed[name] = error
    for name, error in _joined(failed).items():
        bad.append(error)
        del record["files"][name]  # it may be repaired
    run_on_main(write_json, (folder / RECORD, record))
    _refuse(on_bad_audio, bad, "All others were encoded")
    return record, bad


def _missing(targets, entries):
    """Lists what no rank has found, the longest first."""
    left = [n for n in _share(targets) if not targets[n].exists()]
    sizes = _joined({n: -entries[n]["samples"] for n in left})
    return sorted(sizes, key=sizes.get)


def _share(names):
    """Lists the names of which this rank takes care."""
    if not torch.distributed.is_initialized():
        return [*names]
    rank = torch.distributed.get_rank()
    return [*names][rank :: torch.distributed.get_world_size()]


def _joined(of_rank):
    """Joins the dicts of all ranks."""
    if not torch.distributed.is_initialized():
        return of_rank
    parts = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, of_rank)
    return {name: x for part in parts for name, x in part.items()}


def decode_files(source, inputs, folder, layer, device="cpu"):
    """Decodes files of latents into wav files (16 kHz, float).

    Under torch.distributed each rank decodes its share. Each is as long as its
    recording, if encode.json is above the latents; else the shortest that
    encodes to as many frames. Files that are there are
    skipped; decode.json records decoder and latents.

    Arguments
    ---------
    source : str or Path
        A model with a decoder of the layer: see `SmoothInfoMax`.
    inputs : list of str or Path
        Files that `encode_files` wrote, and folders of such.
    folder, layer, device : str
        See `encode_files`: `a/b.npy` becomes `<folder>/a/b.wav`.

    Returns
    -------
    list of Path
        The wav files. A FileNotFoundError or ValueError if there is nothing to
        decode, no decoder, latents of another layer, two of one name, or wavs
        of other latents or of another decoder are there.
    """
    model = SmoothInfoMax.from_pretrained(source, run_opts={"device": device})
    origin = model.encoder.origin(layer)
    digest = encoder_of if origin == layer else identity_of
    settings = {"encoder": digest(model.config), "layer": layer}
    found, record = find_files(inputs, LATENTS), Path(folder, DECODED)
    decoders = parts_of(model.config["parts"], DECODER)
    if origin in decoders:  # else nothing can be decoded
        contents = {name: content_hash(path) for name, path in found.items()}
        made_of = {"decoder": decoders[origin]["sha256"]}
        content = _join_record(record, made_of, contents)
        run_on_main(write_json, (record, content))
    targets = {p: Path(folder, f"{name}.wav") for name, p in found.items()}
    read = lru_cache(read_json)  # one record of many files
    for path in Bar(_share(targets), "decoding", unit="file"):
        target = targets[path]
        samples = _samples_of(path, settings, read)
        if target.exists():
            continue
        if path.suffix == ".npy":  # mapped: of any length
            z = torch.from_numpy(read_arrays(path, mmap=True))
        else:
            z = load_file(path)[layer]
        wav = model.decode(z[None], layer, samples)[0].cpu()
        with atomic(target) as partial:
            options = {"subtype": "FLOAT", "format": "WAV"}
            file = os.fsencode(partial)
            soundfile.write(file, wav.numpy(), SAMPLE_RATE, **options)
    ddp_barrier()
    return list(targets.values())


def find_files(inputs, endings):
    """Finds files, and names them without folder and ending.

    Folders are searched as by `list_files`, for files of these `endings`.
    Returns paths by name: below the folder that was given. Raises a
    FileNotFoundError if there is none, a ValueError if two have one name.
    """
    found = {}
    for item in map(Path, inputs):
        base, files = item.parent, [item]
        if not item.is_file():
            base, files = item, []
            if item.is_dir():
                files = list_files(item, endings)
        if not files:
            raise FileNotFoundError(
                f"{item} is no file, and no folder with {', '.join(endings)}."
            )
        for file in files:
            name = file.relative_to(base).with_suffix("").as_posix()
            name = file_of("", name).as_posix()  # not too long for its ending
            if found.setdefault(name, file) != file:
                raise ValueError(
                    f"{found[name]} and {file} would both become '{name}': "
                    f"use two --out, or give a folder above both."
                )
    return found


def _describe(paths, encoder, layer):
    """Describes each recording for encode.json; lists those that are bad."""
    entries, bad = {}, {}
    for name in _share(paths):
        path = paths[name]
        try:
            samples = check_file(encoder, path, [layer])
        except BadAudio as error:
            bad[name] = error
            continue
        content = {"content": content_hash(path), "samples": samples}
        entries[name] = {"audio": str(path.resolve()), **content}
    known = _joined(entries)
    entries = {name: known[name] for name in paths if name in known}
    return entries, list(_joined(bad).values())


def _join_record(path, settings, entries):
    """Joins what a record holds with what is to be encoded, or decoded.

    Reserves its folder.
    """
    if if_main_process():
        lock_folder(path.parent)
    record = read_json(path) if path.exists() else {"files": {}}
    for known, new in (record, settings), (record["files"], entries):
        for key, value in new.items():
            if known.setdefault(key, value) != value:
                raise ValueError(
                    f"{path.parent} holds files of the {key} {known[key]}, "
                    f"not {value}: choose another --out."
                )
    return record


def _refuse(on_bad_audio, bad, rest):
    """Raises a ValueError that lists the bad files, unless they are skipped."""
    if bad and on_bad_audio == "fail":
        listed = "\n".join(map(str, bad))
        raise ValueError(f"{len(bad)} bad files. {rest}.\n{listed}")


def _samples_of(path, settings, read):
    """Length of a recording by its encode.json; None without one."""
    path = path.resolve()
    above = [f for f in path.parents if (f / RECORD).exists()]
    if not above:
        return None
    record = read(above[0] / RECORD)
    for key, value in settings.items():
        if record[key] != value:
            raise ValueError(
                f"{path} is of the {key} {record[key]}, not {value}."
            )
    name = path.relative_to(above[0]).with_suffix("").as_posix()
    return record["files"].get(name, {}).get("samples")
