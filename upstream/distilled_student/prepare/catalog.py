"""What is published about LibriSpeech, Speech Commands v0.01 and VoxCeleb1: files, checksums, sizes, counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distilled_student.prepare import counts


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        checksum: SHA-256 or MD5 in hex.
        size: In bytes; 0: not published.
        urls: Addresses, tried in this order; none: the user must request the file.
    """

    name: str
    checksum: str
    size: int = 0
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A folder of a corpus, and the archives that it is made from.

    Attributes:
        folder: Its path, relative to the folder of the corpus.
        archives: The pieces of one archive, in order.
        inside: The folder in the archive that becomes ``folder``; empty: the archive's top level.
        unpacked: Its size on disk in bytes.
        count: Counts the files of the folder: name of the count -> number.
        expected: The result of ``count`` for the published files.
        joined: The archive as one file, for users who have joined the pieces.
        note: A remark on the counts.
    """

    folder: str
    archives: tuple[Archive, ...]
    inside: str
    unpacked: int
    count: Callable[[Path], dict[str, int]]
    expected: Mapping[str, int]
    joined: Archive | None = None
    note: str = ""


@dataclass(frozen=True)
class Corpus:
    """A corpus.

    Attributes:
        folder: Its path, relative to the folder of all corpora.
        about: Name, size, licence and source.
        parts: Its folders.
        page: The page where a user requests the corpus; None: anybody may download it.
        trials: The trial list of the last part, and its number of trials.
        more_trials: Further trial lists, of all parts.
    """

    folder: str
    about: str
    parts: tuple[Part, ...]
    page: str | None = None
    trials: tuple[Archive, int] | None = None
    more_trials: tuple[tuple[Archive, int], ...] = ()


def _librispeech(name: str, sha256: str, size: int, utterances: int, speakers: int) -> Part:
    bases = ("https://www.openslr.org", "https://us.openslr.org", "https://openslr.elda.org")
    archive = f"{name}.tar.gz"
    return Part(
        folder=name,
        archives=(Archive(archive, sha256, size, tuple(f"{base}/resources/12/{archive}" for base in bases)),),
        inside=f"LibriSpeech/{name}",
        unpacked=int(1.05 * size),  # estimated: a tar.gz hardly compresses FLAC
        count=counts.speakers_and_utterances,
        expected={"utterances": utterances, "speakers": speakers},
    )


# SHA-256: torchaudio/datasets/librispeech.py. Sizes: Kaldi's egs/librispeech/s5/local/download_and_untar.sh.
# Utterances: DeepSpeech2's data/librispeech/librispeech.py. Speakers and hours: Panayotov et al. 2015, table 1.
LIBRISPEECH = Corpus(
    folder="LibriSpeech",
    about="LibriSpeech, 960.9 hours of read English, CC BY 4.0, openslr.org/12",
    parts=(
        _librispeech(
            "train-clean-100",
            "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
            size=6_387_309_499,
            utterances=28_539,
            speakers=251,
        ),
        _librispeech(
            "train-clean-360",
            "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
            size=23_049_477_885,
            utterances=104_014,
            speakers=921,
        ),
        _librispeech(
            "train-other-500",
            "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
            size=30_593_501_606,
            utterances=148_688,
            speakers=1_166,
        ),
    ),
)


def _speech_commands(name: str, sha256: str, size: int) -> Archive:
    # two addresses of the same storage
    bases = ("http://download.tensorflow.org", "https://storage.googleapis.com/download.tensorflow.org")
    return Archive(name, sha256, size, tuple(f"{base}/data/{name}" for base in bases))


# SHA-256 and sizes: huggingface/datasets, datasets/superb/dataset_infos.json ("ks"); the first also in torchaudio.
# Words: 64,727 files (README of the archive) less 6 noises. SUPERB's 51,094 / 6,798 / 3,081: the same
# dataset_infos.json; s3prl's downstream/speech_commands adds the noises to validation too, which makes that 6,804.
# Classic index: 18,538 + 2,577 + 2,567 keyword files in training, validation and testing, each with 10 % unknown and
# 10 % silence, rounded up: 22,246 / 3,093 / 3,081. TC-ResNet's lists have these numbers of lines
# (hyperconnect/TC-ResNet, issue 9). The 22,236 that Kerpicci et al. print for training would take 18,530 keyword files.
SPEECH_COMMANDS = Corpus(
    folder="speech_commands",
    about="Speech Commands v0.01, 64,727 files of about a second (18 hours), CC BY 4.0, arXiv 1804.03209",
    parts=(
        Part(
            folder="train",
            archives=(
                _speech_commands(
                    "speech_commands_v0.01.tar.gz",
                    "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
                    size=1_489_096_277,
                ),
            ),
            inside="",
            unpacked=2_300_000_000,  # estimated: 64,727 files of 32 kB in blocks of 4 KiB
            count=counts.speech_commands_training,
            expected={
                "words": 64_721,
                "background noises": 6,
                "classic training utterances": 22_246,
                "classic validation utterances": 3_093,
                "SUPERB training utterances": 51_094,
                "SUPERB validation utterances": 6_798,
            },
            note="the paper prints 22,236 classic training utterances, which would need 8 keyword files fewer; s3prl "
            "also counts the 6 noises as SUPERB validation utterances: 6,804",
        ),
        Part(
            folder="test",
            archives=(
                _speech_commands(
                    "speech_commands_test_set_v0.01.tar.gz",
                    "baa084f6b62c91de660ff0588ae4dfc4e4d534aa99ac0e5f406cba75836cbd00",
                    size=71_271_436,
                ),
            ),
            inside="",
            unpacked=120_000_000,
            count=counts.speech_commands_test,
            expected={"test utterances": 3_081},
        ),
    ),
)


def _trials(name: str, md5: str, count: int, *more: str) -> tuple[Archive, int]:
    return Archive(name, md5, urls=(f"https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/{name}", *more)), count


# SHA-256 of the archives: torchaudio/datasets/voxceleb1.py. MD5 of the joined file and of the lists:
# PaddleSpeech's dataset/voxceleb/voxceleb1.py. Counts and hours: PaddleSpeech's examples/voxceleb/README.md. OpenSLR's
# voxceleb1_test_v2.txt is veri_test.txt: it has the same MD5.
VOXCELEB1 = Corpus(
    folder="voxceleb1",
    about="VoxCeleb1, 351.6 hours of interviews, CC BY 4.0 (the videos belong to their owners), on request",
    page="https://mm.kaist.ac.kr/datasets/voxceleb (its authors' page: https://www.robots.ox.ac.uk/~vgg/data/voxceleb)",
    parts=(
        Part(
            folder="dev/wav",
            archives=(
                Archive(
                    "vox1_dev_wav_partaa",
                    "21ec6ca843659ebc2fdbe04b530baa4f191ad4b0971912672d92c158f32226a0",
                ),
                Archive(
                    "vox1_dev_wav_partab",
                    "311d21e0c8cbf33573a4fce6c80e5a279d80736274b381c394319fc557159a04",
                ),
                Archive(
                    "vox1_dev_wav_partac",
                    "92b64465f2b2a3dc0e4196ae8dd6828cbe9ddd1f089419a11e4cbfe2e1750df0",
                ),
                Archive(
                    "vox1_dev_wav_partad",
                    "00e6190c770b27f27d2a3dd26ee15596b17066b715ac111906861a7d09a211a5",
                ),
            ),
            joined=Archive("vox1_dev_wav.zip", "ae63e55b951748cc486645f532ba230b"),
            inside="wav",
            unpacked=39_300_000_000,
            count=counts.speakers_and_utterances,
            expected={"utterances": 148_642, "speakers": 1_211},
        ),
        Part(
            folder="test/wav",
            archives=(
                Archive(
                    "vox1_test_wav.zip",
                    "8de57f347fe22b2c24526e9f444f689ecf5096fc2a92018cf420ff6b5b15eaea",
                ),
            ),
            inside="wav",
            unpacked=1_300_000_000,
            count=counts.speakers_and_utterances,
            expected={"utterances": 4_874, "speakers": 40},
        ),
    ),
    trials=_trials(
        "veri_test.txt",
        "29fc7cc1c5d59f0816dc15d6e8be60f7",
        37_720,
        "https://www.openslr.org/resources/49/voxceleb1_test_v2.txt",
    ),
    more_trials=(
        _trials("veri_test2.txt", "b73110731c9223c1461fe49cb48dddfc", 37_611),
        _trials("list_test_all.txt", "b9ecf7aa49d4b656aa927a8092844e4a", 581_480),
        _trials("list_test_all2.txt", "a53e059deb562ffcfc092bf5d90d9f3a", 579_818),
        _trials("list_test_hard.txt", "21c341b6b2168eea2634df0fb4b8fff1", 552_536),
        _trials("list_test_hard2.txt", "857790e09d579a68eb2e339a090343c8", 550_894),
    ),
)

CORPORA = {"librispeech": LIBRISPEECH, "speech_commands": SPEECH_COMMANDS, "voxceleb1": VOXCELEB1}
