"""The index of speaker verification: the speakers of training, development and test, and their trials."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distilled_student.common import audio_reading
from distilled_student.common.audio_folders import AudioFolders, path_identity
from distilled_student.common.errors import UserError, one_line
from distilled_student.common.recordings import recordings_fingerprint
from distilled_student.corpora.held_out import by_hash
from distilled_student.corpora.keywords import hash_percentage
from distilled_student.corpora.speaker_names import identity, merged_names
from distilled_student.corpora.speakers import (
    Trials,
    find_agreeing_pattern,
    read_trials,
    relative_to_roots,
    speaker_files,
)
from distilled_student.multitask.tasks.sv_settings import number_of_development

log = logging.getLogger(__name__)

EXTRA = " in extra_roots["  # ends the name of a training speaker, before the number of the folder


class SpeakerIndex:
    """Speakers of training, of development and of the test trials: no speaker is in two of them.

    Everything is read at its first use: a test needs no training folders, and an export no folder at all. The
    development speakers are those with the lowest hash of the name (the hash that splits Speech Commands): the choice
    does not depend on the seed, and hardly changes when speakers are added. Names that differ only in case or Unicode
    normal form are one speaker.
    With ``dev_utterances`` the development speakers are training speakers too, but no utterance is in both.

    Args:
        speaker_pattern, trials_root, dev_utterances: See `Settings`.

    Attributes:
        training, development: The files of each speaker, by name.
        test: The trials of the list, or None.
        test_speakers: Their names.
    """

    def __init__(
        self,
        root: Path,
        trials: str | None,
        dev_speakers: int | float,
        extra_roots: Sequence[str],
        key: str,
        speaker_pattern: str | None = None,
        trials_root: str | None = None,
        dev_utterances: int = 0,
    ) -> None:
        self.root, self.key, self.pattern = root, key, speaker_pattern
        self._folders = AudioFolders()  # a speaker's folder in several roots is one speaker
        self.dev_speakers, self.extra_roots = dev_speakers, extra_roots
        self.trials, self.trials_root = trials, trials_root
        files = root if trials_root is None else Path(trials_root)
        self.dev_utterances = dev_utterances
        self._trial_roots = [files / "test" / "wav", files / "wav", files / "dev" / "wav", files]

    @property
    def roots(self) -> Sequence[str]:
        """The folders of further training speakers."""
        return self.extra_roots

    @functools.cached_property
    def _test(self) -> tuple[Trials | None, set[str]]:
        """The test trials and the names of their speakers."""
        name, folder = "root" if self.trials_root is None else "trials_root", self._trial_roots[-1]
        if not folder.is_dir():
            raise UserError(f"{self.key}.{name}: {folder}: no such folder")
        if self.trials is None:
            return None, set()
        return read_trials(folder / self.trials, self._trial_roots, self.key, self.pattern)

    @property
    def test(self) -> Trials | None:
        return self._test[0]

    @property
    def test_speakers(self) -> set[str]:
        return self._test[1]

    @functools.cached_property
    def _test_identities(self) -> set[str]:
        return set(map(identity, self.test_speakers))

    @functools.cached_property
    def _speakers(self) -> dict[str, list[Path]]:
        """The speakers of training and development."""
        test_identities = self._test_identities  # first: a missing root is reported as such
        folder = self.root / "dev" / "wav" if (self.root / "dev" / "wav").is_dir() else self.root / "wav"
        found = self._read(folder, "root")
        self._check_other_folders(found)
        speakers = {name: files for name, files in found.items() if identity(name) not in test_identities}
        if not self.dev_utterances and (held_out := number_of_development(self.dev_speakers, len(speakers))) >= len(
            speakers
        ):
            reason = f"{held_out} of {len(speakers)} speakers leave no training speaker"
            remedy = f"set fewer, or {self.key}.speaker_pattern if the first folder below {folder} is not the speaker"
            raise UserError(f"{self.key}.dev_speakers: {reason}: {remedy}")
        for name, files in speakers.items():
            if same := self._tested_file(files):
                reason = f"{same} is a recording of the test trials, whose speaker has another name than '{name}'"
                raise UserError(f"{self.key}.root: {self.root}: {reason}: remove it from the training speakers")
        return speakers

    def _read(self, folder: Path, setting: str) -> dict[str, list[Path]]:
        """`speaker_files` of a folder that ``setting`` names; spellings of a name are one speaker."""
        key = f"{self.key}.{setting}"
        found = speaker_files(folder, key, self.pattern, self._folders)
        names, merged = merged_names(found, f"{key}: {folder}"), dict[str, list[Path]]()
        for name, files in found.items():
            merged[names[name]] = sorted(merged.get(names[name], []) + files)
        return dict(sorted(merged.items()))

    @functools.cached_property
    def _tested(self) -> set[tuple[int, int] | str]:
        """The identity of each recording of the test trials."""
        return set(map(path_identity, self.test.paths if self.test is not None else ()))

    def _tested_file(self, files: Sequence[Path]) -> Path | None:
        """The first of ``files`` that is a recording of the test trials, by whatever path; or None."""
        return next((file for file in files if path_identity(file) in self._tested), None) if self._tested else None

    def _check_other_folders(self, speakers: Mapping[str, list[Path]]) -> None:
        """Refuse a test list whose further folders have the names of training speakers, and agree with its labels.

        An example is ``FEMALE/ALICE/1.wav`` where ``ALICE`` is a training speaker: ``ALICE`` would stay in training.
        """
        if self.test is None or self.pattern is not None:
            return
        found = find_agreeing_pattern(self.test, relative_to_roots(self.test.paths, self._trial_roots))
        if found is None or found[1]:
            return
        others = set(map(identity, found[2])) - self._test_identities
        if both := sorted(name for name in speakers if identity(name) in others):
            reason = f"{len(both)} training speakers, such as '{both[0]}', are folders of the test trials, whose first"
            remedy = f"is taken for the speaker: set {self.key}.speaker_pattern, such as '{found[0]}'"
            raise UserError(f"{self.key}.root: {self.root}: {reason} folder {remedy}")

    @functools.cached_property
    def _held_out(self) -> set[Path]:
        """The ``dev_utterances`` utterances with the lowest hash; each speaker keeps the one with the highest."""
        ranked = []
        for files in self._speakers.values():
            hashes = sorted((hash_percentage(p.relative_to(self.root).as_posix()), p) for p in files)
            ranked += hashes[:-1]
        if self.dev_utterances > len(ranked):
            reason = f"{self.dev_utterances} of {len(ranked)} utterances that leave each speaker one for training"
            raise UserError(f"{self.key}.dev_utterances: {reason}")
        return {path for _, path in sorted(ranked)[: self.dev_utterances]}

    @functools.cached_property
    def development(self) -> dict[str, list[Path]]:
        if self.dev_utterances:
            found = {name: [p for p in files if p in self._held_out] for name, files in self._speakers.items()}
            return {name: files for name, files in found.items() if files}
        lowest = by_hash(self._speakers)[: number_of_development(self.dev_speakers, len(self._speakers))]
        return {name: self._speakers[name] for name in sorted(lowest)}

    @functools.cached_property
    def _extra(self) -> dict[tuple[str, str], list[Path]]:
        """``(folder, name)`` -> files, of `extra`."""
        found, held_out = {}, self._test_identities | set(map(identity, self.development))
        for folder in self.roots:
            for name, files in self._read(Path(folder), "extra_roots").items():
                if identity(name) in held_out:
                    continue
                if same := self._tested_file(files):
                    reason = f"speaker '{name}' has {same}, a file of the test trials, whose speaker has another name"
                    raise UserError(f"{self.key}.extra_roots: {folder}: {reason}: expected a folder for each speaker")
                found[folder, name] = files
        self._warn_of_repeated_names([name for _, name in found])
        return found

    def _warn_of_repeated_names(self, extra: Sequence[str]) -> None:
        """Log speakers of ``extra_roots`` who have the name of another training speaker."""
        counts = Counter(map(identity, [*self._training, *extra]))
        if repeated := sorted({name for name in extra if counts[identity(name)] > 1}):
            reason = f"{len(repeated)} names of speakers are in several folders, such as '{one_line(repeated[0])}'"
            remedy = "each is a class of its own: if they are one person, use one folder"
            log.warning("%s.extra_roots: %s: %s", self.key, reason, remedy)

    @property
    def extra(self) -> dict[str, list[Path]]:
        """Training speakers of ``extra_roots``, without those that are also in development or test.

        Raises:
            UserError: a speaker with another name has a file of the test trials.
        """
        return {f"{folder}:{name}": files for (folder, name), files in self._extra.items()}

    @functools.cached_property
    def training(self) -> dict[str, list[Path]]:
        return self._training | self.extra

    @functools.cached_property
    def _training(self) -> dict[str, list[Path]]:
        """The training speakers of ``root``."""
        if self.dev_utterances:
            return {name: [p for p in files if p not in self._held_out] for name, files in self._speakers.items()}
        return {name: files for name, files in self._speakers.items() if name not in self.development}

    @property
    def training_names(self) -> list[str]:
        """The name of each training speaker, in the order of the classes; the same wherever the folders are."""
        names = list(self._training)
        numbers = {folder: number for number, folder in reversed(list(enumerate(self.roots)))}
        return names + [f"{name}{EXTRA}{numbers[folder]}]" for folder, name in self._extra]

    @functools.cached_property
    def recordings_of_root(self) -> list[str]:
        """`recordings_fingerprint` of each training speaker of ``root``, in the order of the classes."""
        return [recordings_fingerprint(files) for files in self._training.values()]

    @property
    def recordings(self) -> list[str]:
        """`recordings_fingerprint` of each training speaker, in the order of the classes."""
        return self.recordings_of_root + [recordings_fingerprint(files) for files in self._extra.values()]

    def training_items(self, crop_seconds: float) -> list[tuple[Path, int]]:
        """``(file, class)`` of one pass; a file of an extra speaker once for each crop that fits into it."""
        items, extra = [], self.extra
        for label, (name, files) in enumerate(self.training.items()):
            for file in files:
                times = max(1, int(audio_reading.seconds(file) / crop_seconds)) if name in extra else 1
                items += [(file, label)] * times
        return items

    def development_trials(self, count: int, seed: int) -> Trials:
        """``count`` trials of the development speakers, or fewer if there are not so many.

        See `random_trials`.

        Raises:
            UserError: a development speaker has a single utterance and so no target trial.
        """
        for name, files in self.development.items():
            if len(files) < 2 and not self.dev_utterances:
                reason = f"speaker '{name}' has one utterance; development trials need at least two"
                raise UserError(f"{self.key}.root: {files[0].parent}: {reason}")
        if all(len(files) < 2 for files in self.development.values()):
            reason = f"no two of the {self.dev_utterances} utterances are of the same speaker; hold out more"
            raise UserError(f"{self.key}.dev_utterances: {reason}")
        return random_trials(self.development, count, np.random.default_rng([seed, 1]))


def random_trials(by_speaker: Mapping[str, Sequence[Path]], count: int, rng: np.random.Generator) -> Trials:
    """``count`` trials of the files of speakers, half of them target trials; or fewer if there are not so many.

    Target trials are pairs of different folders first, which are sessions, then pairs of the same folder.
    """
    paths = [file for files in by_speaker.values() for file in files]
    speakers = np.repeat(np.arange(len(by_speaker)), [len(files) for files in by_speaker.values()])
    _, sessions = np.unique([str(p.parent) for p in paths], return_inverse=True)
    half = count // 2
    target = _target_pairs(speakers)
    rng.shuffle(target)
    same_session = sessions[target[:, 0]] == sessions[target[:, 1]]
    target = target[np.argsort(same_session, kind="stable")][:half]
    other = _nontarget_pairs(speakers, count - half, rng)
    pairs = np.concatenate([target, other])
    labels = np.repeat([1, 0], [len(target), len(other)])
    used, positions = np.unique(pairs, return_inverse=True)
    left, right = positions.reshape(-1, 2).T
    return Trials([paths[i] for i in used], left, right, labels, speakers[used], speaker_names=list(by_speaker))


def _target_pairs(speakers: np.ndarray) -> np.ndarray:
    """All pairs ``(pairs, 2)`` of utterances of the same speaker."""
    pairs = []
    for speaker in np.unique(speakers):
        members = np.flatnonzero(speakers == speaker)
        i, j = np.triu_indices(len(members), k=1)
        pairs.append(np.stack([members[i], members[j]], axis=1))
    return np.concatenate(pairs)


def _nontarget_pairs(speakers: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to ``count`` different pairs ``(pairs, 2)`` of utterances of different speakers."""
    utterances = len(speakers)
    if utterances <= 2000:
        i, j = np.triu_indices(utterances, k=1)
        codes = rng.permutation((i * utterances + j)[speakers[i] != speakers[j]])
    else:  # too many pairs to list all; nearly every random pair is of different speakers
        i, j = rng.integers(utterances, size=(2, 4 * count))
        different = speakers[i] != speakers[j]
        low, high = np.minimum(i, j)[different], np.maximum(i, j)[different]
        codes = rng.permutation(np.unique(low * utterances + high))
    return np.stack(np.divmod(codes[:count], utterances), axis=1)
