"""Packaging of speechbrain_sim.

`pip install .`; `.[synthetic]` for the synthetic corpus, `.[analysis]` for
recipes/study.py, `.[spectral]` and `.[huggingface]` for some of its options,
`.[onnx]` for encoders as ONNX files,
`.[explore]` for `speechbrain-sim explore`,
`.[opensmile]` for eGeMAPS as known factors (its licence: research only),
`.[praat]` for acoustic labels by Praat (GPL-3.0-or-later),
`.[textgrid]` for phones of the Montreal Forced Aligner,
`.[abx]` for benchmarks/abx.py,
`.[docs]` for `make docs` and the tutorials, `.[test]` for everything that `make test` runs.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "speechbrain_sim/version.txt").read_text().strip()

EXTRAS = {
    "abx": [
        "fastabx>=0.9; python_version >= '3.12'",
        "discophon>=0.2; python_version >= '3.12'",
    ],
    "analysis": ["captum>=0.7", "scikit-learn>=1.3"],
    "docs": [
        "ipykernel>=6",  # of the tutorials
        "mkdocs-material>=9.6,<10",
        "mkdocstrings[python]>=1.0,<2",
        "nbclient>=0.10",
    ],
    "explore": ["fastapi>=0.115", "uvicorn>=0.30"],
    "huggingface": ["transformers>=4.57"],
    "onnx": ["onnx>=1.16", "onnxruntime>=1.18"],
    "opensmile": ["opensmile>=2.5"],
    "praat": ["praat-parselmouth>=0.4.5"],
    "spectral": ["auraloss>=0.4"],
    "synthetic": ["espeakng-loader==0.2.4"],
    "tensorboard": ["tensorboard"],
    "textgrid": ["praatio>=6"],
}
EXTRAS["test"] = [
    # a stub stands for openSMILE, and tests skip without Praat: their licences
    # are not everyone's
    *(
        x
        for name, extra in EXTRAS.items()
        if name not in ("opensmile", "praat")
        for x in extra
    ),
    "pytest>=8",
    "pytest-xdist>=3",
    "ruff==0.12.4",
    "codespell",
    "gradio==6.31.0",  # of examples/space
    "httpx2",  # fastapi's test client
    "selenium",
]

setup(
    name="speechbrain-sim",
    version=VERSION,
    description="Smooth InfoMax for SpeechBrain: greedy self-supervised "
    "speech encoders with a smooth latent space in each module",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["speechbrain_sim*"]),
        # the model files of hparams/models travel inside the wheel
        "speechbrain_sim.hparams_models",
    ],
    package_dir={"speechbrain_sim.hparams_models": "hparams/models"},
    package_data={
        "speechbrain_sim": [
            "version.txt",
            "box/*.sha256",
            "box/*/*",
            "explorer/*.css",
            "explorer/*.html",
            "explorer/*.js",
            "hub/*.md",
            "hub/*.yaml",
            "report/*.css",
            "report/*.html",
            "report/*.js",
            "report/*.md",
        ],
        "speechbrain_sim.hparams_models": ["*.yaml"],
    },
    install_requires=[
        "speechbrain>=1.1.2,<1.2",  # private methods are overridden
        "torch>=2.7.1,<2.12",
        "torchaudio>=2.7.1,<2.12",
        "hyperpyyaml>=1.2.3",
        "ruamel.yaml",
        "sentencepiece",
        "numpy",
        "filelock>=3.10",
        "huggingface-hub>=1.0",
        "requests>=2.30",
        "urllib3>=2",  # notices a download that ends early
        "safetensors>=0.4",
        "soundfile>=0.12",
        "scipy>=1.15",  # rng= of its resampling
        "matplotlib",
        "pillow",
        "jinja2",
        "tqdm",
    ],
    entry_points={
        "console_scripts": ["speechbrain-sim = speechbrain_sim.cli:main"]
    },
    extras_require=EXTRAS,
)
