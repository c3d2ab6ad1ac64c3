"""Packs what a bare machine with a GPU lacks: code, wheels and data.

    python benchmarks/bundle.py --data DATA

The machine has Python 3.12 and torch with CUDA, but no network. `build/gpu` gets
`wheels`, and `data`: the artificial speech set in its published layout, resampled
to 16 kHz by our reader, as FLAC. `build/gpu.tar` holds both, and the code.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not benchmarks: profile.py is a module of Python, too

from speechbrain_sim.data.audio import (  # noqa: E402
    SAMPLE_RATE,
    audio_info,
    read_audio,
)

#: what the machine lacks of what the package imports
WHEELS = ["speechbrain==1.1.2", "hyperpyyaml", "ruamel.yaml<0.19"]
WHEELS += ["ruamel.yaml.clib", "soundfile", "cffi", "pycparser"]
PLATFORMS = ["manylinux2014_x86_64", "manylinux_2_17_x86_64"]
PLATFORMS += ["manylinux_2_28_x86_64", "any"]
LARGEST = 60e6
FOLDERS = "reshuffledv2", "split up data padded"


def write_set(source, target):
    """Writes the set as FLAC at 16 kHz; returns how many files.

    A ValueError is raised if a file reads back with another length than the
    original. The samples are those of our reader, rounded to 16 bits.
    """
    count = 0
    for part in FOLDERS:
        for path in sorted((source / part).glob("*/*.wav")):
            to = target / path.relative_to(source).with_suffix(".flac")
            to.parent.mkdir(parents=True, exist_ok=True)
            samples = read_audio(path).clamp(-1, 1).numpy()
            soundfile.write(to, samples, SAMPLE_RATE, "PCM_16")
            if audio_info(path).num_samples != len(read_audio(to)):
                raise ValueError(f"{to} has another length than {path}.")
            count += 1
    return count


def write_toy_set(folder):
    """Writes noise with the names and layout of the set; returns the folder."""
    draw = np.random.default_rng(0)
    words = [
        a + b + c for a in ("ba", "di") for b in ("gu", "da") for c in "bg"
    ]
    for word in [w + "u" for w in words]:
        for side, take in (("train", 1), ("test", 2)):
            files = {f"reshuffledv2/{side}/{word}_{take}": 11000}
            for n in range(3):
                name = f"{word}_1_{n + 1}_{word[2 * n : 2 * n + 2]}"
                files[f"split up data padded/{side}/{name}"] = 8821
            for name, samples in files.items():
                path = Path(folder, f"{name}.flac")
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = 0.1 * draw.standard_normal(samples).clip(-3, 3)
                soundfile.write(path, noise, SAMPLE_RATE)
    return Path(folder)


def download_wheels(folder):
    """Downloads the wheels for CPython 3.12 on Linux, x86_64."""
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    command += ["--disable-pip-version-check", "--no-deps", "--dest", folder]
    command += ["--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", "3.12"]
    for abi in ("cp312", "abi3", "none"):
        command += ["--abi", abi]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*map(str, command), *WHEELS], check=True)


def main(argv=None):
    """Writes the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu")
    chosen = parser.parse_args(argv)
    shutil.rmtree(chosen.output, ignore_errors=True)
    count = write_set(chosen.data, chosen.output / "data")
    download_wheels(chosen.output / "wheels")
    archive = chosen.output.with_suffix(".tar")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    with tarfile.open(archive, "w") as tar:
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                tar.add(ROOT / name, f"speechbrain_sim/{name}")
        tar.add(chosen.output, "speechbrain_sim/build/gpu")
    size = archive.stat().st_size
    print(f"{archive}: {size / 1e6:.1f} MB, {count} recordings")
    if size > LARGEST:
        raise SystemExit(f"That is more than {LARGEST / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
