"""The wheel works without the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_sources(sources):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        sources.mkdir(exist_ok=True)
        (sources / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("speechbrain_sim", "hparams", "recipes", "tests"):
        shutil.copytree(
            ROOT / folder,
            sources / folder,
            ignore=shutil.ignore_patterns("__pycache__"),
        )


def archive_of_sources(sources, folder):
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", folder]
    subprocess.run(command, cwd=sources, check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_wheel_builds_models_from_its_own_yamls(tmp_path):
    sources = tmp_path / "sources"
    copy_sources(sources)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, sources], check=True
    )
    (wheel,) = tmp_path.glob("speechbrain_sim-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "speechbrain_sim/report/page.html" in names
        files = (sources / "speechbrain_sim").rglob("*.*")
        assert {str(f.relative_to(sources)) for f in files} <= set(names)
        assert "speechbrain_sim/box/sim-small/example_2.wav" in names
        (entries,) = (n for n in names if n.endswith("entry_points.txt"))
        command = b"speechbrain-sim = speechbrain_sim.cli:main"
        assert command in archive.read(entries)
        folders = {name.split("/")[0] for name in names}
        archive.extractall(tmp_path / "installed")
    assert {f for f in folders if "dist-info" not in f} == {"speechbrain_sim"}
    with tarfile.open(archive_of_sources(sources, tmp_path)) as archive:
        sent = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        n for n in names if "dist-info" not in n and "hparams" not in n
    } <= sent
    code = (
        "from speechbrain_sim.config import MODELS\n"
        "from speechbrain_sim.family import build_model\n"
        "print(MODELS, build_model('gim', channels=4).encoder.layer_names)\n"
        "from speechbrain_sim import SmoothInfoMax\n"
        "SmoothInfoMax.from_pretrained('sim-small')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "installed") in done.stdout
    assert "context" in done.stdout
