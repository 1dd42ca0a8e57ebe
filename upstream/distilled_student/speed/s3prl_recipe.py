"""s3prl's distillation as a reference for speed: its teacher, student and optimiser in a training loop like its own.

s3prl's package lacks that loop. This one follows ``pretrain/distiller`` and ``pretrain/runner.py`` of its repository
(Chang et al. 2022): utterances are sorted by length, a batch has a fixed number of them, batches come in random order.
The student runs in float32 on a CPU and in float16 on a GPU. The loss is a mean over all frames, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from distilled_student.host.plugin import register

CONV = "[({0},10,5)] + [({0},3,2)] * 4 + [({0},2,2)] * 2"
OPTIMIZER = {
    "name": "AdamW_with_schedule",
    "lr": 2.0e-4,
    "warmup_proportion": 0.07,
    "betas": (0.9, 0.98),
    "eps": 1.0e-6,
    "weight_decay": 1.0e-6,
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of teacher and student, which differ in their number of layers only.

    The defaults are those of HuBERT base and DistilHuBERT.
    """

    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    conv: int = 512
    layers: int = 12
    student_layers: int = 2
    targets: tuple[int, ...] = (4, 8, 12)

    def fairseq(self, layers: int) -> dict[str, Any]:
        """Settings of an encoder, named as s3prl's teacher and student both name them."""
        return {
            "encoder_layers": layers,
            "encoder_embed_dim": self.width,
            "encoder_ffn_embed_dim": self.feed_forward,
            "encoder_attention_heads": self.heads,
        }


def write_teacher(file: Path, sizes: Sizes) -> None:
    """Write a HuBERT with random weights, in the format that s3prl's ``hubert_local`` and `open_teacher` read."""
    register()
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    task, symbols = HubertPretrainingConfig(), [["a", "b", "c"]]
    keys = {**sizes.fairseq(sizes.layers), "conv_feature_layers": CONV.format(sizes.conv)}
    config = HubertConfig(label_rate=50.0, final_dim=256, **keys)
    torch.manual_seed(0)
    weights = HubertModel(config, task, symbols).state_dict()
    settings = {"task_cfg": asdict(task), "model_cfg": asdict(config), "dictionaries_symbols": symbols}
    torch.save({**settings, "model_weight": weights}, file)


class _Batches(Dataset):
    """Batches of waveforms ``(samples,)``, read from their files."""

    def __init__(self, files: Sequence[Sequence[Path]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in self.files[index]]


class Recipe:
    """One training run of s3prl's recipe.

    Args:
        teacher: File of a teacher of these ``sizes``, see `write_teacher`.
        files: Audio at 16 kHz.
        utterances: Number of them in a batch.
        precision: Of the student, ``fp32`` or ``fp16``; None: as s3prl's runner, fp16 on a GPU. The teacher's is fp32.
    """

    teacher_precision = "fp32"

    def __init__(
        self,
        teacher: Path,
        sizes: Sizes,
        files: Sequence[Path],
        utterances: int,
        device: torch.device,
        precision: str | None = None,
    ) -> None:
        register()
        from s3prl import hub
        from s3prl.optimizers import get_optimizer
        from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

        config = {
            **sizes.fairseq(sizes.student_layers),
            "extractor_conv_feature_layers": CONV.format(sizes.conv),
            "feature_grad_mult": 0.1,
            "final_dim": sizes.width,
            "n_tasks": len(sizes.targets),
            "pred_layer_id": list(sizes.targets),
        }
        self.targets, self.device = sizes.targets, device
        self.precision = precision or ("fp16" if device.type == "cuda" else "fp32")
        self.half = self.precision == "fp16"
        self.teacher = hub.hubert_local(ckpt=str(teacher)).to(device).eval().requires_grad_(False)
        torch.manual_seed(0)
        self.student = DistillerModel(DistillerConfig(config)).to(device).train()
        self.optimizer = get_optimizer([self.student], 200_000, OPTIMIZER)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)
        ordered = sorted(files, key=lambda file: soundfile.info(file).frames, reverse=True)
        self.batches = [ordered[i : i + utterances] for i in range(0, len(ordered), utterances)]

    def loss(self, waves: Sequence[Tensor]) -> Tensor:
        """The loss of a batch of waveforms ``(samples,)``."""
        waves = [wave.to(self.device) for wave in waves]
        mask = pad_sequence([torch.ones_like(wave) for wave in waves], batch_first=True)
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            predictions = self.student(pad_sequence(waves, batch_first=True), mask)[2]
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                states = self.teacher(waves)["hidden_states"]
                targets = torch.stack([states[layer] for layer in self.targets], dim=1)
            similarity = F.cosine_similarity(predictions, targets, dim=-1)
            return F.l1_loss(predictions, targets) - F.logsigmoid(similarity).mean()

    def step(self, waves: Sequence[Tensor]) -> float:
        """Make one update. Returns the loss as a number, which s3prl's runner reads at each step too."""
        loss = self.loss(waves)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.item()

    def epoch(self) -> None:
        """Train on every file once; a worker process reads ahead."""
        for waves in DataLoader(_Batches(self.batches), batch_size=None, shuffle=True, num_workers=1):
            self.step(waves)
