"""s3prl's newer, typed recipes (``SuperbKS``, ``SuperbASV``): what :mod:`host` mends of them, and their command."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from omegaconf.errors import OmegaConfBaseException

from distilled_student import audio
from distilled_student.arguments import literal, pick_device, set_key
from distilled_student.errors import UserError
from distilled_student.mending import Mends
from distilled_student.runner_config import near

OURS = "from distilled_student.recipes import"
FIND_FILES = ("from librosa.util import find_files", "from distilled_student.experts import find_files")

MENDS: Mends = {
    # packages beyond s3prl's requirements, which `s3prl.problem` imports for the sake of any of its recipes
    "s3prl.dataio.corpus.iemocap": [FIND_FILES],
    "s3prl.dataio.dataset.diarization": [("import chunk\n", "")],  # not used, and gone from Python 3.13
    "s3prl.dataio.dataset.load_audio": [("import librosa\n", f"{OURS} load_audio\n"), ("librosa.load(", "load_audio(")],
    "s3prl.metric.common": [
        ("import editdistance as ed", "from torchaudio.functional import edit_distance"),
        ("ed.eval(", "edit_distance("),
    ],
    "s3prl.problem.common._hear_util": [FIND_FILES],
    "s3prl.task._hear_score": [
        ("import sed_eval\n", f"{OURS} optional\nsed_eval = optional('sed_eval')\n"),
        (
            "from dcase_util.containers import MetaDataContainer",
            "MetaDataContainer = optional('dcase_util.containers')",
        ),
    ],
    "s3prl.task.event_prediction": [
        ("import more_itertools\n", f"{OURS} optional\nmore_itertools = optional('more_itertools')\n")
    ],
    # a single selected layer was refused
    "s3prl.nn.upstream": [("== len(all_lens) > 1", "== len(all_lens)")],
    # values of the command line were evaluated as code
    "s3prl.problem.base": [("from s3prl.util.override import", OURS)],
    # --test_ckpt_dir is a string, and was taken for a path
    "s3prl.problem.asv.run": [("append(test_ckpt_dir)", "append(Path(test_ckpt_dir))")],
    # two lists were downloaded: of the files to look for, where the recipe takes all, and of trials that are there
    "s3prl.dataio.corpus.voxceleb1sv": [
        ("import _download\n", f"import _download\n{OURS} speaker_verification_files, speaker_verification_trials\n"),
        (
            "self.format_path(\n            self.dataset_root, download_dir, force_download\n        )",
            "speaker_verification_files(self.dataset_root)",
        ),
        (
            "self.format_test_trials(download_dir, force_download)",
            "speaker_verification_trials(self.dataset_root) or self.format_test_trials(download_dir, force_download)",
        ),
    ],
}


class _Absent:
    """In the place of a package that is not installed: only using it is an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> _Absent:
        if attribute.startswith("__"):  # inspection is not use
            raise AttributeError(attribute)
        return self

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise UserError(f"this recipe needs the Python package {self._name}, which is not installed")


def optional(name: str) -> Any:
    """The package, or what says on its first call that it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return _Absent(name)


def load_audio(path: str, sr: int, offset: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """``librosa.load``: ``(samples,)`` float32 and their rate, of which the recipes ask for 16 kHz alone."""
    return audio.load(path, offset, duration).numpy(), sr


def parse_overrides(options: Sequence[str]) -> dict[str, Any]:
    """``--train.total_steps 10 --build_upstream.name fbank`` as nested settings.

    Values are Python literals, or YAML's null, true and false; other text is a string.

    Raises:
        UserError: an option without a value, or one that leads through a plain value.
    """
    config: dict[str, Any] = {}
    for position in range(0, len(options), 2):
        option = options[position]
        if not option.startswith("--") or "=" in option or position + 1 == len(options):
            raise UserError(f"{option}: settings are written --KEY.KEY VALUE")
        value = literal(options[position + 1].strip())
        set_key(config, option.removeprefix("--").split("."), value, option)
    return config


def speaker_verification_files(root: Path) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """VoxCeleb1's files to train on, to validate on (none) and to test, and a number for each training speaker."""
    from distilled_student.multitask.tasks.sv_index import speaker_files

    key = "prepare_data.dataset_root"
    training, testing = (speaker_files(root / part / "wav", key) for part in ("dev", "test"))
    train, test = ([str(file) for files in part.values() for file in files] for part in (training, testing))
    return train, [], test, {speaker: number for number, speaker in enumerate(training)}


def speaker_verification_trials(root: Path) -> list[tuple[int, str, str]]:
    """Label and s3prl's names of both utterances, for each line of the corpus' ``veri_test.txt``; empty without it."""
    from distilled_student.multitask.tasks.sv_index import read_trials

    if not (root / "veri_test.txt").is_file():
        return []
    trials, _ = read_trials(root / "veri_test.txt", [root / "test" / "wav"])
    names = ["-".join(path.parts[-3:]) for path in trials.paths]
    pairs = zip(trials.labels, trials.left, trials.right, strict=True)
    return [(int(label), names[left], names[right]) for label, left, right in pairs]


@contextlib.contextmanager
def _user_errors(recipe: str, hub: ModuleType) -> Iterator[None]:
    """What a wrong setting or file makes s3prl raise, as one line that names it."""
    from distilled_student.host import one_line

    try:
        yield
    except OmegaConfBaseException as error:
        raise UserError(f"{recipe}: --{error.full_key}: {str(error.msg or error).splitlines()[0]}") from error
    except AttributeError as error:
        if error.obj is not hub:
            raise
        names = near(error.name, hub.options())
        raise UserError(f"{recipe}: --build_upstream.name {error.name}: no such upstream{names}") from error
    except TypeError as error:  # settings are the arguments of what they set
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not unknown:
            raise
        raise UserError(f"{recipe}: {unknown[1]}: no such setting") from error
    except (UserError, OSError) as error:
        raise UserError(f"{recipe}: {one_line(error)}") from error


def run(arguments: Sequence[str]) -> None:
    """s3prl's ``s3prl-main RECIPE --KEY.KEY VALUE ...``, with the plugin's upstreams; ``--device`` need not be given.

    Raises:
        UserError: no such recipe, upstream or setting, a missing setting, something that cannot be read; one line.
    """
    from distilled_student import host

    host.register()
    from s3prl import hub, problem

    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: s3prl-main RECIPE --KEY.KEY VALUE ...\n       s3prl-main RECIPE --print_config\n")
        print(f"recipes: {', '.join(problem.__all__)}")
        return
    if name not in problem.__all__:
        raise UserError(f"{name}: no such recipe; there are {', '.join(problem.__all__)}")
    if "--device" not in options:
        options = ["--device", pick_device(None), *options]
    with _user_errors(name, hub):
        getattr(problem, name)().main(options)
