"""The cost of a corpus of shards: bytes, speed of reading and decoding on one core, and the models' operations.

    python tests/stress/rates.py [SHARD.tar ...]    # without shards: the embedded corpus, as FLAC

Prints the figures from which docs/scale.md computes.
"""

from __future__ import annotations

import io
import itertools
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from distilled_student import Student
from distilled_student.common.audio import SAMPLE_RATE
from distilled_student.corpora.shipped import PACKED
from distilled_student.distillation.data.cuts import DataConfig
from distilled_student.distillation.data.shards import Unit, open_units, read_chunks
from distilled_student.distillation.data.stream import make_stream
from distilled_student.student.config import named_size
from distilled_student.student.cost import macs_per_second

REPEATS = 3
HOURS, GPU, SHARE = (
    1e6,
    989e12,
    0.4,
)  # size of the corpus; dense bf16 FLOP/s of an H100, and the share of it that is assumed


def write_shard(path: Path, seconds: float = 10.0) -> None:
    """Write a shard of the embedded corpus, each voice in pieces of ``seconds``."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(PACKED.glob("*.ogg")):
            for number, block in enumerate(soundfile.blocks(file, int(seconds * SAMPLE_RATE), dtype="int16")):
                content = io.BytesIO()
                soundfile.write(content, block, SAMPLE_RATE, format="FLAC")
                member = tarfile.TarInfo(f"{file.stem}-{number:04d}.flac")
                member.size = len(content.getvalue())
                archive.addfile(member, io.BytesIO(content.getvalue()))


def reading(paths: Sequence[str]) -> tuple[int, float]:
    """Bytes of all members, and seconds to read them from the disk cache without decoding."""
    start, read = time.perf_counter(), 0
    for path in paths:
        read += sum(len(item.content) for items, _ in read_chunks(Unit(path)) for item in items)
    return read, time.perf_counter() - start


def batches(paths: Sequence[str]) -> tuple[float, float, float]:
    """Seconds of audio in a pass, seconds to read and decode it in this process, and the share of padding."""
    config = DataConfig(list(paths), workers=0, streams=1)
    start, samples, padded = time.perf_counter(), 0, 0
    stream = make_stream(config, open_units(config), seed=0)
    for batch in itertools.takewhile(lambda batch: batch.position[0] == 0, stream):
        samples, padded = samples + int(batch.lengths.sum()), padded + batch.waveforms.numel()
    return samples / SAMPLE_RATE, time.perf_counter() - start, 1 - samples / padded


class Stacked(nn.Module):
    """A model of padded waveforms with the interface that `macs_per_second` calls: a list of waveforms."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, wavs: list[Tensor]) -> object:
        return self.model(torch.stack(wavs))


def main(paths: Sequence[str]) -> None:
    """Print the measured rates, and what follows for ``HOURS`` hours."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not paths:
            paths = [str(Path(folder) / "speech.tar")]
            write_shard(Path(paths[0]))
        reading(paths)
        size, read = min((reading(paths) for _ in range(REPEATS)), key=lambda found: found[1])
        audio, decoded, padding = min((batches(paths) for _ in range(REPEATS)), key=lambda found: found[1])
    models = HubertModel(HubertConfig()), Student(named_size("paper"))
    macs = [macs_per_second(Stacked(model)) for model in models]
    flops = 2 * macs[0] + 6 * macs[1]  # the student's backward pass is two forward passes
    rate = SHARE * GPU / flops
    print(f"speech               {audio / 3600:.2f} h, {size / audio * 3600 / 1e6:.1f} MB/h as stored")
    print(f"reading shards       {size / read / 1e6:.0f} MB/s, {audio / read:.0f} s of audio per second, one core")
    print(f"reading and decoding {audio / decoded:.0f} s of audio per second, one core; {padding:.1%} padding")
    print(f"teacher              {macs[0] / 1e9:.2f} GMAC per second of audio, forward")
    print(f"student (paper)      {macs[1] / 1e9:.2f} GMAC per second of audio, forward; twice that backward")
    print(f"a GPU, assumed       {SHARE:.0%} of {GPU / 1e12:.0f} TFLOP/s: {rate:.0f} s of audio per second")
    print(f"it reads             {rate * size / audio / 1e6:.0f} MB/s, decoded by {rate * decoded / audio:.1f} cores")
    print(
        f"{HOURS:.0e} hours          {HOURS * 3600 * size / audio / 1e12:.1f} TB, {HOURS / rate:.0f} GPU hours a pass"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
