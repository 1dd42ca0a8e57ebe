"""s3prl's own downstream experts on today's stack: which expressions of theirs are replaced when they are imported.

Everything else in them runs as it is, so that what they report is s3prl's. Nothing in s3prl's folder is written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from distilled_student.mending import Mends
from distilled_student.settings import cache_folder

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", ".au")  # librosa's, which s3prl's find_files is from

MENDS: Mends = {
    "s3prl.downstream.speech_commands.expert": [
        # catalyst is unmaintained, and fails to import on Python 3.10 and newer
        ("from catalyst.data.sampler import", "from distilled_student.experts import"),
    ],
    "s3prl.downstream.speech_commands.dataset": [
        # background noise that is shorter than a second is taken whole
        ("randint(0, len(wav) - 16000)", "randint(0, max(0, len(wav) - 16000))"),
    ],
    "s3prl.downstream.sv_voxceleb1.dataset": [
        ("from sox import Transformer\n", ""),  # not used
        (
            "from librosa.util import find_files",
            "from distilled_student.experts import find_files, lengths_file\n"
            "from distilled_student.files import save_torch",
        ),
        # lengths went into s3prl's own folder, and those of one data set were taken for those of any other
        (
            "Path(os.path.dirname(__file__)) / '.wav_lengths' / f'{self.root_key[index]}_length.pt'",
            "lengths_file(self.roots[index])",
        ),
        ("torch.save([wav_tags, wav_lengths], str(cache_path))", "save_torch([wav_tags, wav_lengths], cache_path)"),
        # twelve processes, whatever the machine has; threads do, since what they call leaves Python
        ("Parallel(n_jobs=n_jobs)", "Parallel(n_jobs=-1, prefer='threads')"),
    ],
    "s3prl.downstream.sv_voxceleb1.expert": [
        # VoxCeleb1 has no development list
        (
            "self.dev_dataset = SpeakerVerifi_test(**dev_config)",
            "self.dev_dataset = SpeakerVerifi_test(**dev_config) if dev_config['meta_data'] else None",
        ),
        (".cuda()", ".to(features_pad.device)"),  # there may be no GPU, or several
        # the development list's trials, not the test's
        ("trials = self.test_dataset.pair_table", "trials = getattr(self, f'{mode}_dataset').pair_table"),
        # the labels were never recorded: the file of the truth was empty
        ('zip(records["pair_names"], records["labels"])', 'zip(records["pair_names"], labels)'),
    ],
    "s3prl.downstream.audio_snips.expert": [
        (".cuda()", ".to(features_pad.device)"),
    ],
    "s3prl.downstream.voxceleb1.dataset": [
        ("from librosa.util import find_files", "from distilled_student.experts import list_file"),  # not used
        # as the lengths above
        ("os.path.join(CACHE_PATH, f'{mode}.pkl')", "list_file(mode, file_path, meta_data)"),
    ],
}


class DistributedSamplerWrapper(torch.utils.data.DistributedSampler):
    """Each process's share of another sampler's draw: the one name s3prl's ``speech_commands`` takes from catalyst."""

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.dataset)
        return iter([drawn[index] for index in super().__iter__()])


def find_files(folder: str | Path) -> list[str]:
    """librosa's: absolute paths of all audio files below a folder, sorted."""
    return sorted(str(path.absolute()) for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO)


def _cached(kind: str, ending: str, *parts: Any) -> Path:
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    path = cache_folder() / "superb" / f"{kind}-{key[:16]}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def lengths_file(root: str | Path) -> Path:
    """Where the lengths of the utterances below ``root`` are kept: another file as soon as a file there changes."""
    files = [(path, os.path.getsize(path)) for path in find_files(root)]
    return _cached("lengths", ".pt", str(Path(root).resolve()), files)


def list_file(mode: str, root: str | Path, meta_data: str | Path) -> str:
    """Where the files of a split are kept: another file for another folder or another list."""
    return str(_cached(mode, ".pkl", str(Path(root).resolve()), Path(meta_data).read_text(encoding="utf-8")))
