"""Settings of SUPERB's tasks in s3prl's own experts: the shipped config of each task, and a check of its values.

s3prl evaluates names in the settings as code, and reads the data before it looks at the other settings. So everything
is checked here before s3prl gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.common.settings import typed

# s3prl's downstream -> its config in configs/superb
CONFIGS = {
    "speech_commands": "ks",
    "sv_voxceleb1": "asv",
    "voxceleb1": "sid",
    "emotion": "er",
    "fluent_commands": "ic",
    "asr": "asr",
    "diarization": "sd",
    "quesst14_dtw": "qbe",
    "separation_stft2": "ss",
    "enhancement_stft2": "se",
    "audio_snips": "snips",
}
# names that s3prl.downstream.model.UtteranceLevel and its parts look up; of an activation see _check_names
NAMES = {"select": ("UtteranceLevel", "FrameLevel"), "pooling": ("MeanPooling", "AttentivePooling")}

Module = Enum("Module", ["XVector", "Identity"])
Pooling = Enum("Pooling", ["SP", "MP", "AP", "ASP"])
Head = Enum("Head", ["UtteranceExtractor", "UtteranceIdentity"])
Loss = Enum("Loss", ["AMSoftmaxLoss", "AAMSoftmaxLoss", "SoftmaxLoss"])


def _exists(key: str, path: str, is_folder: bool = True) -> Path:
    if not (Path(path).is_dir() if is_folder else Path(path).is_file()):
        raise ValueError(f"{key}: {path}: no such {'folder' if is_folder else 'file'}")
    return Path(path)


def _check_names(values: Mapping[str, Any], key: str) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_names(value, f"{key}.{name}")
        elif name == "activation":
            import torch  # here: without an activation, settings are checked before torch is imported

            if not (isinstance(value, str) and value[:1].isupper() and hasattr(torch.nn, value)):
                raise ValueError(f"{key}.{name}: torch.nn has no {name} {value!r}")
        elif name in NAMES and value not in NAMES[name]:
            raise ValueError(f"{key}.{name}: s3prl has no {name} {value!r}{did_you_mean(value, NAMES[name])}")


def _check_counts(data: Any) -> None:
    for key, value in vars(data).items():
        if key.endswith("batch_size") and value < 1:
            raise ValueError(f"datarc.{key}: expected a whole number from 1, found {value}")
    if data.num_workers < 0:
        raise ValueError(f"datarc.num_workers: expected a whole number from 0, found {data.num_workers}")


@dataclass
class UtteranceModel:
    """``modelrc`` of tasks with one class for each utterance: a projection, pooling over time, a linear layer."""

    projector_dim: int
    select: str
    UtteranceLevel: dict[str, Any] = field(default_factory=dict)
    DeepModel: dict[str, Any] = field(default_factory=dict)  # in s3prl's emotion recognition

    def __post_init__(self) -> None:
        if self.select != "UtteranceLevel":
            raise ValueError(f"modelrc.select: expected UtteranceLevel, found '{self.select}'")
        _check_names(self.UtteranceLevel, "modelrc.UtteranceLevel")


@dataclass
class KeywordData:
    speech_commands_root: str
    speech_commands_test_root: str
    num_workers: int
    batch_size: int

    def __post_init__(self) -> None:
        from distilled_student.common.audio_folders import is_left_out
        from distilled_student.corpora.keywords import KEYWORDS, SILENCE, UNKNOWN

        _check_counts(self)
        root = _exists("datarc.speech_commands_root", self.speech_commands_root)
        if not any(root.glob("_background_noise_/*.wav")):
            raise ValueError(
                f"datarc.speech_commands_root: {root}: no _background_noise_/*.wav, which SUPERB's silence needs"
            )
        for folder in root.iterdir():  # s3prl would train them as unknown words
            if is_left_out(folder.name) and any(folder.glob("*.wav")):
                raise ValueError(f"datarc.speech_commands_root: {folder}: is no word, but has .wav files: remove it")
        test = _exists("datarc.speech_commands_test_root", self.speech_commands_test_root)
        for path in test.iterdir():
            folder, is_read = path.name, path.is_dir() and (not is_left_out(path.name) or any(path.glob("*.wav")))
            if is_read and folder not in (*KEYWORDS, UNKNOWN, SILENCE):
                raise ValueError(f"datarc.speech_commands_test_root: {test}: {folder} is not one of the twelve classes")


@dataclass
class KeywordSpotting:
    """``downstream_expert`` of ``-d speech_commands``."""

    datarc: KeywordData
    modelrc: UtteranceModel


@dataclass
class SpeakerIdentificationData:
    file_path: str
    meta_data: str
    max_timestep: int | None
    num_workers: int
    train_batch_size: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _check_counts(self)
        _exists("datarc.file_path", self.file_path)
        _exists("datarc.meta_data", self.meta_data, is_folder=False)


@dataclass
class SpeakerIdentification:
    """``downstream_expert`` of ``-d voxceleb1``."""

    datarc: SpeakerIdentificationData
    modelrc: UtteranceModel


@dataclass
class EmotionData:
    root: str
    meta_data: str
    test_fold: str
    pre_load: bool
    valid_ratio: float
    num_workers: int
    train_batch_size: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _check_counts(self)
        _exists("datarc.root", self.root)
        folder = _exists("datarc.meta_data", self.meta_data) / self.test_fold.replace("fold", "Session")
        for name in ("train", "test"):
            _exists("datarc.meta_data", str(folder / f"{name}_meta_data.json"), is_folder=False)


@dataclass
class EmotionRecognition:
    """``downstream_expert`` of ``-d emotion``."""

    datarc: EmotionData
    modelrc: UtteranceModel


@dataclass
class IntentData:
    file_path: str
    num_workers: int
    train_batch_size: int
    eval_batch_size: int

    def __post_init__(self) -> None:
        _check_counts(self)
        folder = _exists("datarc.file_path", self.file_path)
        for name in ("train", "valid", "test"):
            _exists("datarc.file_path", str(folder / "data" / f"{name}_data.csv"), is_folder=False)


@dataclass
class IntentClassification:
    """``downstream_expert`` of ``-d fluent_commands``."""

    datarc: IntentData
    modelrc: UtteranceModel


@dataclass
class VoiceActivity:
    min_sec: int  # in samples, although its name says seconds


@dataclass
class VerificationData:
    file_path: str
    vad_config: VoiceActivity
    train_meta_data: str | None  # not read
    dev_meta_data: str | None
    test_meta_data: str
    max_timestep: int | None
    train_batch_size: int
    eval_batch_size: int
    num_workers: int

    def __post_init__(self) -> None:
        from distilled_student.corpora.speakers import read_trials

        _check_counts(self)
        root = _exists("datarc.file_path", self.file_path)
        _exists("datarc.file_path", str(root / "dev" / "wav"))
        for split, trials in (("dev", self.dev_meta_data), ("test", self.test_meta_data)):
            if trials is not None:
                read_trials(_exists(f"datarc.{split}_meta_data", trials, is_folder=False), [root / split / "wav"])


@dataclass
class VerificationModel:
    """``modelrc`` of ``-d sv_voxceleb1``: frame layers, pooling, the layers of the utterance vector, the loss."""

    module: Module
    input_dim: int
    agg_module: Pooling
    utter_module: Head
    module_config: dict[str, Any]
    ObjectiveLoss: Loss
    LossConfig: dict[str, Any]

    def __post_init__(self) -> None:
        for key, name in (("module_config", self.module.name), ("LossConfig", self.ObjectiveLoss.name)):
            if not isinstance(getattr(self, key).get(name), Mapping):
                raise ValueError(f"modelrc.{key}.{name}: missing, or not a group of keys")


@dataclass
class SpeakerVerification:
    """``downstream_expert`` of ``-d sv_voxceleb1``."""

    datarc: VerificationData
    modelrc: VerificationModel


# s3prl's downstream -> its settings
SETTINGS: dict[str, type] = {
    "speech_commands": KeywordSpotting,
    "sv_voxceleb1": SpeakerVerification,
    "voxceleb1": SpeakerIdentification,
    "emotion": EmotionRecognition,
    "fluent_commands": IntentClassification,
}


def check(where: str, downstream: str, settings: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check ``downstream_expert`` of one of :data:`SETTINGS`; ``splits`` will be evaluated.

    Raises:
        UserError: a key or a name that s3prl does not have, missing data; names ``where`` and the key.
    """
    typed(SETTINGS[downstream], settings, f"{where}: downstream_expert")
    if downstream == "sv_voxceleb1" and "dev" in splits and settings["datarc"]["dev_meta_data"] is None:
        raise UserError(f"{where}: downstream_expert.datarc.dev_meta_data: no list of trials to evaluate dev with")
