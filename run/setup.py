"""Packaging: distilled-student-run, the same code as distilled-student with what a device needs: no torch, no corpora.

pip install ./run, in a clone. Both distributions have the same modules: install one of them in an environment.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE_DIR = {
    "distilled_student": "../upstream/distilled_student",
    "distilled_student.multitask": "../downstream/multitask",
    "distilled_student.configs": "../configs",
}
HERE = Path(__file__).parent
MODULE = HERE / PACKAGE_DIR["distilled_student"]
VERSION = re.search(r'^__version__ = "(.+?)"', (MODULE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]

packages = [
    name if sub == "" else f"{name}.{sub}"
    for name, folder in PACKAGE_DIR.items()
    for sub in ["", *find_packages(HERE / folder)]
]

# everything but what trainings need: float weights, the embedded corpus, the teacher
FOR_TRAINING = ("assets/corpus/", "assets/teacher/")
data = [
    name
    for path in MODULE.rglob("*")
    if path.is_file()
    and path.suffix not in (".py", ".pyc", ".safetensors")
    and not (name := path.relative_to(MODULE).as_posix()).startswith(FOR_TRAINING)
]

setup(
    name="distilled-student-run",
    version=VERSION,
    description="Runs distilled speech students: keywords and speakers with numpy and onnxruntime, without torch",
    long_description=(HERE / "../README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=packages,
    package_dir=PACKAGE_DIR,
    package_data={"distilled_student": data, "distilled_student.configs": ["**/*.yaml", "*.yaml"]},
    install_requires=[
        "numpy",
        "onnxruntime>=1.23",  # see setup.py of distilled-student
        "soundfile",  # reads audio files of all common formats
        "soxr",  # resamples
        "platformdirs",  # the user's folders of profiles and of exported models
        "filelock",  # locks the folder of profiles
        "typer>=0.12,<0.29",  # the command line; from 0.29 on it requires pydantic, 10 MB
    ],
    extras_require={"wyoming": ["wyoming>=1.8"], "microphone": ["sounddevice"]},
    entry_points={
        "console_scripts": ["distilled-student = distilled_student.cli:main"],
        "opm.wake_word.verifier": [
            "ovos-ww-verifier-distilled-student = distilled_student.device.ovos:SpeakerVerifier"
        ],
    },
)
