"""Compares joint training through the runner with a minimal loop: both train the same model on each batch in turn."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from distilled_student.checkpoints.folder import save_student
from distilled_student.corpora import embedded
from distilled_student.host import launch as host
from distilled_student.host.plugin import register
from distilled_student.multitask.loader import Batch
from distilled_student.speed.measure import ratio
from distilled_student.student.config import named_size
from distilled_student.student.cost import has_fast_bf16
from distilled_student.student.network import Student

WARMUP = 4  # steps, two of each task


def bare_loop(student: Student, tasks: torch.nn.ModuleDict, config: dict[str, Any]) -> Callable[[Batch], None]:
    """A training step of a minimal loop: concatenated hidden states go to the heads, Adam updates all weights.

    Args:
        config: Settings of the runner and of the optimiser.
    """
    student.predictions = None  # the heads do not use them
    parameters = [*student.parameters(), *tasks.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config["optimizer"]["lr"])
    device, runner = parameters[0].device, config["runner"]

    def step(batch: Batch) -> None:
        wavs, task, labels, *_ = batch
        waveforms = pad_sequence([torch.from_numpy(wav) for wav in wavs], batch_first=True).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=runner["bf16"]):
            output = student(waveforms, torch.tensor([len(wav) for wav in wavs]))
        outputs = tasks[task](torch.cat(output.hidden_states, dim=2), output.lengths)
        loss, _ = tasks[task].loss(outputs, torch.tensor(labels, device=device))
        loss.backward()
        clip_grad_norm_(parameters, runner["gradient_clipping"])
        optimizer.step()
        optimizer.zero_grad()

    return step


class TimedLoader:
    """A loader that also trains the minimal loop on every batch, before or after the runner's step in turn.

    ``times``: for each batch the seconds of loading, of the runner's step and of the minimal loop's step.
    """

    def __init__(self, loader: Iterable[Batch], bare: Callable[[Batch], None], times: list[tuple[float, ...]]) -> None:
        self.loader, self.bare, self.times = loader, bare, times

    def __len__(self) -> int:
        return len(self.loader)

    def _bare(self, batch: Batch) -> float:
        start = time.perf_counter()
        self.bare(batch)
        return time.perf_counter() - start

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            if (batch := next(batches, None)) is None:
                return
            loading = time.perf_counter() - start
            first = len(self.times) % 2 == 0
            bare = self._bare(batch) if first else 0.0
            start = time.perf_counter()
            yield batch  # the runner works on it until it asks for the next one
            runner = time.perf_counter() - start
            self.times.append((loading, runner, bare if first else self._bare(batch)))


@contextlib.contextmanager
def _timing_runner(times: list[tuple[float, ...]]) -> Iterator[None]:
    """Replace the runner of s3prl's launcher by one whose training loader is a `TimedLoader`."""
    register()
    from s3prl import run_downstream

    class Runner(run_downstream.Runner):
        def train(self) -> None:
            expert = self.downstream.model
            models = copy.deepcopy((self.upstream.model.student.train(), expert.tasks.train()))
            bare, load = bare_loop(*models, self.config), expert.get_dataloader
            expert.get_dataloader = lambda split, **more: TimedLoader(load(split, **more), bare, times)
            super().train()

    before, run_downstream.Runner = run_downstream.Runner, Runner
    try:
        yield
    finally:
        run_downstream.Runner = before


def compare_joint(steps: int = 30, size: str = "edge", corpus: Path | None = None) -> dict[str, Any]:
    """Fine-tune a student of a named size as the demo does, through the runner and in a minimal loop.

    Args:
        steps: Number of steps that count.
        corpus: Folder with both layouts; None: the embedded corpus.

    Returns:
        ``loading``, ``runner`` and ``bare`` (the minimal loop): seconds of a step, medians. ``overhead``: share by
        which the runner's step is longer than the minimal loop's, median and quartiles over the steps. Neither
        includes loading, which is the same for both.
    """
    corpus, times, bf16 = corpus or embedded.cached(), [], has_fast_bf16()
    with TemporaryDirectory() as name, _timing_runner(times), contextlib.redirect_stderr(io.StringIO()):
        student, where = Path(name) / "student", "config.downstream_expert.tasks"
        save_student(Student(named_size(size)), student)
        overrides = [
            f"{where}.kws.train_root={corpus / 'speech_commands/train'}",
            f"{where}.kws.test_root={corpus / 'speech_commands/test'}",
            f"{where}.sv.root={corpus / 'voxceleb1'}",
            f"{where}.sv.dev_speakers=2",
            f"config.runner.bf16={bf16}",
            f"config.runner.total_steps={steps + WARMUP + 1}",  # the end of the last step is not measured
            "config.runner.eval_step=1000000",
            "config.runner.save_step=1000000",
            "config.runner.eval_dataloaders=[]",
            "config.downstream_expert.num_workers=1",
        ]
        launch = ["-m", "train", "-u", "distilled_student", "-k", str(student), "-s", "concatenated", "-f"]
        host.run([*launch, "-d", "multitask", "-c", "demo", "-p", f"{name}/exp", "-o", ",,".join(overrides)])
    loading, runner, bare = (list(part) for part in zip(*times[WARMUP : WARMUP + steps], strict=True))
    overhead = {name: value - 1 for name, value in ratio(runner, bare)._asdict().items()}
    return {
        "model": size,
        "precision": "bf16" if bf16 else "fp32",
        "loading": median(loading),
        "runner": median(runner),
        "bare": median(bare),
        "overhead": overhead,
    }
