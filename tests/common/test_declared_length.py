"""Truncated audio files of every format are refused in one line; files that are whole are read completely."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import tone

from distilled_student import UserError, onnx
from distilled_student.common import audio, audio_reading
from distilled_student.common.audio_folders import audio_files
from distilled_student.corpora.keywords import KEYWORDS
from distilled_student.distillation.data.config import DataConfig
from distilled_student.distillation.data.cuts import CutDataset, read_cuts
from distilled_student.distillation.data.shards import cut_of_member
from distilled_student.multitask.loader import EvaluationItems, TrainingItems
from distilled_student.multitask.tasks import kws
from distilled_student.multitask.tasks.kws_index import KeywordClip
from distilled_student.patches import torchaudio_names

WITH_A_LENGTH = [
    *(("WAV", name) for name in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "GSM610", "G721_32")),
    *(("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("AU", "G723_24"), ("AU", "ULAW")),
    *(("W64", "PCM_16"), ("RF64", "PCM_16"), ("WAVEX", "PCM_16"), ("CAF", "PCM_16"), ("CAF", "ALAC_16")),
    *(("CAF", "ULAW"), ("CAF", "FLOAT")),
    *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16"), ("NIST", "PCM_16")),
    *(("SVX", "PCM_16"), ("AVR", "PCM_16"), ("MPC2K", "PCM_16"), ("VOC", "PCM_16"), ("WVE", "ALAW")),
]


def encoded(kind: str, subtype: str, seconds: float = 3.0, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    rate = 8_000 if kind == "WVE" else rate
    soundfile.write(out, tone(seconds, rate).numpy(), rate, format=kind, subtype=subtype)
    return out.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def whole(path: Path, seconds: float = 3.0) -> np.ndarray:
    """All samples by soundfile alone. Formats that cannot seek need the number of samples."""
    with soundfile.SoundFile(path) as file:
        return file.read(file.frames, dtype="float32")


def refused_in_one_line(path: Path) -> None:
    """By all readers; those that read no length decode the file first."""
    first_half = lambda: audio.load(path, 0.1, 0.2)  # noqa: E731
    for read in (lambda: audio.load(path), first_half, lambda: torchaudio_names.load(path)):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value).startswith(f"{path}: not readable as audio (") and "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("part", [0.5, 0.9, 0.98])
@pytest.mark.parametrize(("kind", "subtype"), WITH_A_LENGTH)
def test_a_file_whose_end_is_missing_is_refused_by_every_reader(
    kind: str, subtype: str, part: float, tmp_path: Path
) -> None:
    content = encoded(kind, subtype)
    path = put(tmp_path / f"a.{kind.lower()}", content)
    samples, rate = whole(path), 8_000 if kind == "WVE" else 16_000
    torch.testing.assert_close(audio.load(path), audio.resample(torch.from_numpy(samples), rate), atol=1e-6, rtol=0)
    np.testing.assert_allclose(torchaudio_names.load(path)[0][0].numpy(), samples, atol=1e-6)
    refused_in_one_line(put(path, content[: int(part * len(content))]))
    cuts, skipped = ([], ["it"]) if not readable(path) else read_cuts(DataConfig([str(tmp_path)]))
    failed = CutDataset()[cuts].failed
    assert len(skipped) + len(failed) == 1, "distillation names it"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("IRCAM", "PCM_16"),
        ("MAT5", "PCM_16"),
        ("PAF", "PCM_16"),
        ("PVF", "PCM_16"),
        ("SDS", "PCM_16"),
        ("XI", "DPCM_16"),
    ],
)
def test_a_format_whose_length_cannot_be_checked_is_refused_and_named_in_folders(
    kind: str, subtype: str, tmp_path: Path
) -> None:
    path = put(tmp_path / f"a.{kind.lower()}", encoded(kind, subtype))
    with pytest.raises(UserError, match=r"a\..*cannot be checked.*: convert it, as in `ffmpeg -i a\.\w+ a\.wav`$"):
        audio.load(path)
    with pytest.raises(UserError, match=r"key: .*a\..* is not read: convert it"):
        audio_files(tmp_path, "key")
    put(tmp_path / "b.wav", encoded(kind, subtype))  # by its content, not by its name
    with pytest.raises(UserError, match=r"b\.wav: .*convert it to WAV or FLAC"):
        audio.load(tmp_path / "b.wav")


def test_a_coding_that_libsndfile_cannot_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = put(tmp_path / "a.aiff", encoded("AIFF", "DWVW_16"))
    with pytest.raises(
        UserError, match=r"a\.aiff: .*another program plays it, convert it: `ffmpeg -i a\.aiff a\.wav`$"
    ):
        audio.load(path)


def readable(path: Path) -> bool:
    try:
        return audio_reading.header(path).frames > 0
    except UserError:
        return False


@pytest.mark.parametrize("kind", ["MP3", "OGG", "FLAC", "WAV", "AIFF"])
def test_training_and_evaluation_name_a_truncated_file(kind: str, tmp_path: Path) -> None:
    content = encoded(kind, soundfile.default_subtype(kind))
    path = put(tmp_path / f"a.{kind.lower()}", content[: len(content) // 2])
    clip = KeywordClip(path, 2, "yes/a")
    settings = kws.Settings(train_root=str(tmp_path), keywords=KEYWORDS)
    training = TrainingItems(kws.Training([clip], settings, [], "kws"), [0])
    for item in (training[0, 0], EvaluationItems(kws.Evaluation([clip], kws.Settings()))[0]):
        assert isinstance(item, UserError) and str(path) in str(item) and "\n" not in str(item)


@pytest.mark.parametrize("kind", ["WAV", "OGG", "MP3", "AIFF", "AU"])
def test_a_truncated_member_of_a_shard_is_named(kind: str) -> None:
    content = encoded(kind, soundfile.default_subtype(kind))
    assert cut_of_member("a", content).duration == pytest.approx(3.0)
    with pytest.raises(RuntimeError, match="truncated"):
        cut_of_member("a", content[: len(content) // 2])


def too_long(content: bytes, excess: int) -> bytes:
    """A WAV file whose header declares so many bytes more than there are."""
    position = content.index(b"data") + 4
    size = struct.unpack("<I", content[position : position + 4])[0]
    return content[:position] + struct.pack("<I", size + excess) + content[position + 4 :]


@pytest.mark.parametrize("excess", [1, 8, 16, 36, 44])
def test_a_header_that_declares_some_bytes_too_many_is_no_truncation(excess: int, tmp_path: Path) -> None:
    content = encoded("WAV", "PCM_16")
    path = put(tmp_path / "a.wav", too_long(content, excess))
    expected = whole(put(tmp_path / "right.wav", content))
    np.testing.assert_array_equal(audio.load(path).numpy(), expected)
    np.testing.assert_array_equal(onnx.read_wav(path, 16_000), expected)
    (cut,) = read_cuts(DataConfig([str(path.parent)]))[0].filter(lambda cut: cut.recording.id == str(path))
    np.testing.assert_array_equal(CutDataset()[[cut]].waveforms[0].numpy(), expected)


@pytest.mark.parametrize("declared", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_header_that_leaves_the_size_open_is_no_truncation(declared: int, tmp_path: Path) -> None:
    content = encoded("WAV", "PCM_16")
    position = content.index(b"data") + 4
    path = put(tmp_path / "a.wav", content[:position] + struct.pack("<I", declared) + content[position + 4 :])
    expected = tone(3.0).numpy()
    np.testing.assert_allclose(audio.load(path).numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(onnx.read_wav(path, 16_000), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")]
)
def test_the_reader_of_the_device_reads_and_refuses_what_the_other_one_does(
    kind: str, subtype: str, tmp_path: Path
) -> None:
    content = encoded(kind, subtype, 0.1)
    path = put(tmp_path / "a.wav", content)
    np.testing.assert_allclose(onnx.read_wav(path, 16_000), whole(path), atol=1e-7)
    start = content.index(b"data") + 8
    missing = [0, 1, 2, 16, 43, 44, 45, start, start + 1, 127, 128, 129, 1_000, len(content) - start - 4]
    for count in missing:
        put(path, content[: len(content) - count])
        results = []
        for read in (lambda: audio.load(path).numpy(), lambda: onnx.read_wav(path, 16_000)):
            try:
                results.append(read())
            except (UserError, ValueError) as error:
                assert "truncated" in str(error)
                results.append(None)
        assert (results[0] is None) == (results[1] is None), count
        if results[0] is not None:
            np.testing.assert_allclose(results[0], results[1], atol=1e-7)
    assert results[0] is None


def test_the_reader_of_the_device_averages_the_channels_of_an_extensible_file(tmp_path: Path) -> None:
    samples = np.stack([tone(0.1, seed=i).numpy() for i in range(4)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, format="WAVEX", subtype="FLOAT")
    np.testing.assert_allclose(onnx.read_wav(tmp_path / "a.wav", 16_000), samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "GSM610"), ("WAV", "G721_32"), ("AU", "G721_32"), ("AU", "G723_24"), ("AU", "G723_40")],
)
def test_formats_that_cannot_seek_are_read_from_any_position(kind: str, subtype: str, tmp_path: Path) -> None:
    path = put(tmp_path / f"a.{kind.lower()}", encoded(kind, subtype, 3.0, 8_000))
    with soundfile.SoundFile(path) as file:
        assert not file.seekable()
        expected = file.read(file.frames, dtype="float32")
    assert len(expected) >= 24_000
    resampled = audio.resample(torch.from_numpy(expected), 8_000)
    torch.testing.assert_close(audio.load(path), resampled)
    excerpt = audio.resample(torch.from_numpy(expected[8_000:12_000]), 8_000)
    torch.testing.assert_close(audio.load(path, 1.0, 0.5), excerpt)
    np.testing.assert_array_equal(torchaudio_names.load(path, 8_000, 4_000)[0][0].numpy(), expected[8_000:12_000])
    config = DataConfig([str(tmp_path)], max_seconds=1.0)
    cuts = sorted(read_cuts(config)[0], key=lambda cut: cut.start)
    batch = CutDataset()[cuts[:3]]
    assert not batch.failed
    for i, waveform in enumerate(batch.waveforms):
        piece = torch.from_numpy(expected[i * 8_000 : (i + 1) * 8_000])
        torch.testing.assert_close(waveform[: batch.lengths[i]], audio.resample(piece, 8_000))


def mp3(mode: str) -> bytes:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 16_000, 1, format="MP3", compression_level=0.5, bitrate_mode=mode) as file:
        file.write(tone(5.0).numpy())
    return out.getvalue()


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_an_mp3_file_without_a_length_is_read_whole_or_refused(mode: str, tmp_path: Path) -> None:
    """libsndfile guesses its length from the first bit rate, and reads up to this."""
    content = mp3(mode)
    path = put(tmp_path / "a.mp3", content[content.index(content[:2], 2) :])  # without the frame that has the length
    if mode == "CONSTANT":
        assert len(audio.load(path)) == pytest.approx(80_000, abs=3 * 1152)
    else:
        with pytest.raises(UserError, match=r"a\.mp3: .*does not say its length: convert it to WAV or FLAC"):
            audio.load(path)
    assert len(audio.load(put(path, b"ID3\x04\0\0\0\0\1\0" + bytes(128) + content))) == 80_000, "behind a tag"


def test_trailing_tags_and_chunks_are_no_truncation(tmp_path: Path) -> None:
    for kind, tail in (("MP3", b"TAG" + bytes(125)), ("OGG", bytes(100)), ("WAV", b"LIST\4\0\0\0INFO")):
        content = encoded(kind, soundfile.default_subtype(kind))
        path = put(tmp_path / f"a.{kind.lower()}", content + tail)
        assert len(audio.load(path)) == 48_000, kind


def test_chunks_before_the_audio_do_not_hide_a_truncation(tmp_path: Path) -> None:
    content = encoded("WAV", "PCM_16")
    chunks = b"".join(b"junk" + struct.pack("<I", 101) + bytes(102) for _ in range(200))
    position = content.index(b"data")
    long = content[:position] + chunks + content[position:]
    assert len(audio.load(put(tmp_path / "a.wav", long))) == 48_000
    refused_in_one_line(put(tmp_path / "a.wav", long[:-5_000]))
    with pytest.raises(ValueError, match="truncated"):
        onnx.read_wav(tmp_path / "a.wav", 16_000)


def test_a_file_that_is_not_read_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.m4a: not readable as audio .*`ffmpeg -i a\.m4a a\.wav`"):
        audio.load(put(tmp_path / "a.m4a", b"\0\0\0\x1cftypM4A " + bytes(100)))
