"""The commands that a device needs run with the libraries of distilled-student-run alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
from helpers.spoken import spoken

from distilled_student import cli
from distilled_student.common.early_checks import check_model
from distilled_student.common.errors import UserError
from distilled_student.common.shipped_models import MODELS

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[1]


def required(file: str) -> set[str]:
    """The distributions that a setup.py always installs."""
    text = (ROOT / file).read_text(encoding="utf-8")
    block = text[text.index("install_requires=[") : text.index("    ],", text.index("install_requires=["))]
    return set(re.findall(r'^ +"([\w-]+)', block, re.MULTILINE))


MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
OF_TYPER = {"rich"}  # typer requires it
OTHERS = required("setup.py") - required("run/setup.py") - OF_TYPER
ONLY_FOR_TRAINING = sorted(MODULES.get(name, name) for name in OTHERS)
CODE = """
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from distilled_student.cli import main

for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines():
    print(">", line, flush=True)
    try:
        main(line.split())
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""


def run(folder: Path, *lines: str) -> tuple[dict[str, int], str]:
    """The exit code of each command line, run in one process without the libraries of trainings; and the output."""
    (folder / "lines").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-c", CODE, ",".join(ONLY_FOR_TRAINING), str(folder / "lines")]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    codes = [int(code) for code in re.findall(r"^exit (\d+)$", done.stdout, re.MULTILINE)]
    assert len(codes) == len(lines), done.stdout
    return dict(zip(lines, codes, strict=True)), done.stdout


def test_the_small_distribution_has_no_library_that_the_whole_one_lacks_and_no_torch() -> None:
    assert required("run/setup.py") <= required("setup.py") | {"typer"}
    assert {"torch", "s3prl", "lhotse", "yaml"} <= set(ONLY_FOR_TRAINING)


def test_the_commands_of_a_device_run_without_torch_s3prl_and_lhotse(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "yes.wav", spoken("am_adam", ["yes"]), 16_000)
    soundfile.write(tmp_path / "stereo.flac", spoken("am_adam", ["stop"]).repeat(2).reshape(-1, 2), 44_100)
    people = f"--profiles {tmp_path / 'people'} --model tiny"
    codes, output = run(
        tmp_path,
        "--help",
        "--version",
        "configs list",
        "spot yes.wav --model tiny",
        "embed stereo.flac --model tiny",
        "similarity yes.wav stereo.flac --model tiny",
        f"enrol Ada yes.wav {people}",
        f"verify Ada yes.wav {people}",
        f"identify yes.wav {people}",
        f"speakers --profiles {tmp_path / 'people'}",
        f"listen yes.wav {people}",
        "web --copy site --model tiny",
        "wyoming --uri tcp://256.0.0.1:1 --model tiny",
    )
    assert all(code == 0 for line, code in codes.items() if not line.startswith("wyoming")), output
    assert "yes.wav: yes" in output and "Ada: 1 clip," in output
    assert "tcp://256.0.0.1:1: cannot listen there" in output or "wyoming: is not installed" in output


def test_the_image_installs_programs_that_run_in_its_environment(tmp_path: Path) -> None:
    [command] = re.findall(r"^RUN (python (?:.*\\\n)*.*)", (ROOT / "run/Dockerfile").read_text(), re.MULTILINE)
    contents = {
        "said.py": "def main(): print('started')",
        "said-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: said\nVersion: 1\n",
        "said-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "said-1.dist-info/entry_points.txt": "[console_scripts]\nsaid = said:main\n",
        "said-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(tmp_path / "said-1-py3-none-any.whl", "w") as wheel:
        for name, content in contents.items():
            wheel.writestr(name, content)
    command = command.replace("/source/run[wyoming]", wheel.filename).replace("/venv", str(tmp_path / "venv"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], check=True, env=os.environ | {"PATH": path, "PIP_NO_INDEX": "1"})
    assert subprocess.check_output([tmp_path / "venv/bin/said"], text=True) == "started\n"


def test_a_command_that_needs_a_missing_library_names_it_and_the_remedy(tmp_path: Path) -> None:
    codes, output = run(tmp_path, "distill demo", "export tiny -o a.onnx")
    assert set(codes.values()) == {2}
    for command in codes:
        name = re.search(rf"error: {command.split()[0]}: needs (\w+), which is not installed; `pip install", output)
        assert name and name[1] in ONLY_FOR_TRAINING, output


def test_int8_graphs_are_copied_and_run_as_streams_without_torch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "stop.wav", spoken("am_adam", ["stop"]), 16_000)
    codes, output = run(
        tmp_path,
        "export tiny -o utterance.onnx --int8",
        "export tiny -o stream.onnx --int8 --streaming",
        "stream tiny stop.wav",
        "stream stream.onnx stop.wav",
        "spot stop.wav --model utterance.onnx",
        "stream tiny stop.wav --window 2",
    )
    assert list(codes.values()) == [0, 0, 0, 0, 0, 2], output
    parts = output.split("> ")
    assert "stop" in parts[3] and parts[3].split("\n")[1:] == parts[4].split("\n")[1:] and "stop.wav: stop" in parts[5]
    assert re.search(r"--window 2: the window is part of .*tiny/stream\.onnx: leave it out", parts[6])


def test_a_packed_model_without_float_weights_says_what_pytorch_needs(tmp_path: Path) -> None:
    for file in (MODELS / "tiny").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    file, recording = tmp_path / "a.onnx", tmp_path / "stop.wav"
    soundfile.write(recording, spoken("am_adam", ["stop"]), 16_000)
    with pytest.raises(UserError, match=r"has no float weights, only int8 graphs, .*: `pip install \.` in a clone"):
        check_model(tmp_path, "best-dev.ckpt")
    for words in (["export", str(tmp_path), "-o", str(file), "--int8"], ["stream", str(tmp_path), str(recording)]):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
    assert file.is_file()
