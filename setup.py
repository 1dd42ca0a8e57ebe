"""One distribution, distilled-student; one import name, distilled_student; the two rooms keep s3prl's names."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE_DIR = {
    "distilled_student": "upstream/distilled_student",
    "distilled_student.multitask": "downstream/multitask",
    "distilled_student.configs": "configs",
}

# what s3prl's experts of more of SUPERB's tasks import, see docs/superb.md: recognition, diarisation, query by example
SUPERB = ["editdistance", "h5py", "dtw-python", "lxml"]

EXPORT = [
    "onnx>=1.18",  # the graphs that `distilled-student export` writes
    "onnxscript>=0.5",  # torch's own exporter translates with it
    "onnxruntime>=1.23",  # runs, folds and quantises them; the first with a kernel for opset 23's attention
]
PHONE = ["executorch>=1.5,<1.6"]  # programs for phones, docs/streaming.md; each release is built for one torch: 2.14

MODULE = Path(__file__).with_name("upstream") / "distilled_student" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+?)"', MODULE.read_text(encoding="utf-8"), re.MULTILINE)[1]

packages = [
    name if sub == "" else f"{name}.{sub}"
    for name, folder in PACKAGE_DIR.items()
    for sub in ["", *find_packages(folder)]
]

setup(
    name="distilled-student",
    version=VERSION,
    description="Distilled speech students and joint keyword spotting + speaker verification as an s3prl plugin",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=packages,
    package_dir=PACKAGE_DIR,
    package_data={
        "distilled_student": ["assets/**/*"],
        "distilled_student.configs": ["**/*.yaml", "*.yaml"],
    },
    install_requires=[
        # torchaudio, whose last release is 2.11, refuses a torch built for another CUDA: 13.0 until 2.14, 13.2 in 2.15
        "torch>=2.6,<2.15",
        "torchaudio>=2.6",  # s3prl imports it; resampling
        "s3prl>=0.4.18,<0.5",  # the host: runner, upstreams, SUPERB's experts
        "numpy",  # arrays between audio files and torch
        "pyyaml",  # configuration files
        "safetensors",  # weights on disk that cannot carry code
        "soundfile",  # audio files: libsndfile, every common format
        "lhotse>=1.24",  # manifests and buckets by duration, the field's library for both
        "fsspec",  # shards and manifests by URL; torch's own dependency
        "filelock",  # one run in a folder; torch's own dependency
        "accelerate>=1.0",  # device, precision and processes of the distillation loop
        "transformers>=4.48",  # teachers
        "omegaconf>=2.3",  # typed configuration; already a dependency of s3prl
        "typer>=0.12",  # the command line
        "rich>=13",  # progress lines and tables
        "tensorboard",  # reads the logs that tensorboardX writes
        "tensorboardX",  # s3prl's runner imports it without requiring it
        "matplotlib",  # the report's plots
        "pandas",  # s3prl's typed recipes write and read their lists with it
        "scikit-learn",  # s3prl's SUPERB experts and recipes: label encoders, ROC curves, and joblib
        "scipy",  # s3prl imports it; room responses and filters of the demo corpus
    ],
    extras_require={
        "superb": SUPERB,
        "export": EXPORT,
        "executorch": PHONE,
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",  # makes the damaged files of tests/fuzz, and those that nobody would think of
            "ruff",
            "build",
            *SUPERB,
            *EXPORT,
            *PHONE,
        ],
    },
    entry_points={
        "console_scripts": [
            "distilled-student = distilled_student.cli:main",
            "run_downstream.py = distilled_student.host.launch:main",
        ]
    },
)
