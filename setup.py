"""Packaging: the distribution distilled-student, imported as distilled_student; the folders have s3prl's names."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE_DIR = {
    "distilled_student": "upstream/distilled_student",
    "distilled_student.multitask": "downstream/multitask",
    "distilled_student.configs": "configs",
}

# Extras, installed from a clone: pip install '.[superb]', '.[export]', '.[microphone]', '.[wyoming]', '.[dev]', ...

# imported by s3prl's experts for speech recognition, diarisation and query by example, see docs/superb.md
SUPERB = ["editdistance", "h5py", "dtw-python", "lxml"]

EXPORT = [
    "onnx>=1.18",  # the graphs that `distilled-student export` writes
    "onnxscript>=0.5",  # torch's ONNX exporter needs it
]
MICROPHONE = ["sounddevice"]  # `distilled-student listen` without a file
EXECUTORCH = ["executorch>=1.5,<1.6"]  # .pte programs for phones, see docs/device.md; release 1.5 needs torch 2.14
# The teachers resemblyzer and openwakeword have no extra: only their weights are used, and an extra cannot leave out
# what they require. pip install --no-deps, see docs/own-data.md
WYOMING = ["wyoming>=1.8"]  # Home Assistant's protocol, see docs/home-assistant.md

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
        "distilled_student": ["assets/**/*", "web/*.json", "web/page/**/*"],
        "distilled_student.configs": ["**/*.yaml", "*.yaml"],
    },
    install_requires=[
        # torchaudio's last release, 2.11, needs a torch built for CUDA 13.0; torch 2.15 is built for 13.2
        "torch>=2.6,<2.15",
        "torchaudio>=2.6",  # s3prl imports it; resampling
        "s3prl>=0.4.18,<0.5",  # runner, upstreams, SUPERB's experts
        "numpy",  # arrays between audio files and torch
        "pyyaml",  # configuration files
        # runs the models that ship, and quantises graphs; 1.23 is the first with a kernel for opset 23's attention
        "onnxruntime>=1.23",
        "safetensors",  # weight files that cannot contain code
        "platformdirs",  # the user's folders of profiles and of exported models
        "soxr",  # resamples recordings without torch
        "soundfile",  # reads audio files of all common formats
        "lhotse>=1.24",  # manifests of audio, and batches of similar durations
        "fsspec",  # shards and manifests by URL; torch requires it too
        "filelock",  # locks a run's folder; torch requires it too
        "accelerate>=1.0",  # device, precision and processes in distillation
        "transformers>=4.48",  # teachers
        "omegaconf>=2.3",  # typed settings; s3prl requires it too
        "typer>=0.12",  # the command line
        "rich>=13",  # tables on the terminal
        "tqdm",  # the progress bar
        "tensorboard",  # reads the logs that tensorboardX writes
        "tensorboardX",  # s3prl's runner imports it without requiring it
        "matplotlib",  # plots of the reports
        "pandas",  # s3prl's typed recipes read and write their lists with it
        "scikit-learn",  # s3prl's SUPERB experts and recipes: label encoders, ROC curves, and joblib
        "scipy",  # s3prl imports it; room impulse responses and filters of the demo corpus
    ],
    extras_require={
        "superb": SUPERB,
        "export": EXPORT,
        "executorch": EXECUTORCH,
        "microphone": MICROPHONE,
        "wyoming": WYOMING,
        "dev": [
            "pytest",
            "pytest-xdist>=3.8",  # --no-loadscope-reorder
            "hypothesis",  # generates the damaged files of tests/fuzz
            "ruff",
            "build",
            *SUPERB,
            *EXPORT,
            *EXECUTORCH,
            *WYOMING,
            "ovos-plugin-manager",  # loads the plugin of device/ovos.py
        ],
    },
    entry_points={
        "console_scripts": [
            "distilled-student = distilled_student.cli:main",
            "run_downstream.py = distilled_student.host.launch:main",
        ],
        "opm.wake_word.verifier": [
            "ovos-ww-verifier-distilled-student = distilled_student.device.ovos:SpeakerVerifier"
        ],
    },
)
