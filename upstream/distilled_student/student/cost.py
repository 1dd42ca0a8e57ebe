"""What a model costs: parameters, multiply-accumulates per second of audio, real-time factor on this machine."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distilled_student.common.other_load import needs_more_cores, other_load
from distilled_student.common.sample_rate import SAMPLE_RATE


def _addmm_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    """FLOPs of a product that is added to a matrix in place, from the shapes of its arguments."""
    return 2 * math.prod(left) * right[1]


def _packed_linear_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of a linear layer with a packed weight, from the shapes of its arguments."""
    return 2 * math.prod(x) * weight[0]


FLOP_FORMULAS = {  # for operations of a student that torch's own counter does not know
    torch.ops.aten.addmm_: _addmm_flops,
    torch.ops.mkldnn._linear_pointwise: _packed_linear_flops,
}


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def has_fast_bf16(device: torch.device | None = None) -> bool:
    """Whether bfloat16 is faster than float32: on a CPU only if it has instructions for bfloat16."""
    abilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return on_gpu or any(value for name, value in abilities.items() if "bf16" in name)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache  # measured once: a suite distils several students
@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """The highest FLOP/s that the device reaches: large square products for ``seconds``, the fastest one counts."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    fastest, end = math.inf, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or fastest == math.inf:
        left @ right
        _wait_for(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest


class TakesList(nn.Module):
    """A model of batches ``(batch, samples)`` with the interface of an upstream: a list of waveforms of one length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, wavs: Sequence[Tensor]) -> Any:
        return self.model(torch.stack(list(wavs)))


@torch.enable_grad()
def macs_per_second(upstream: nn.Module) -> int:
    """Multiply-accumulates for one second of 16 kHz audio, counted on the convolutions and matrix products that run.

    Counts the network as training computes it, not the faster operations of an evaluation (see `is_cpu_inference`).

    ``upstream`` takes a list of 1-D waveforms, as s3prl's upstreams do.
    """
    training, fast_path = upstream.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter cannot see into its fused kernel
    try:
        counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
        with counter, sdpa_kernel(SDPBackend.MATH):  # nor into the CPU's fused attention
            upstream.eval()([torch.zeros(SAMPLE_RATE, device=_device(upstream))])
        return counter.get_total_flops() // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        upstream.train(training)


@torch.no_grad()
def real_time_factor(upstream: nn.Module, seconds: float = 4.0, repeats: int = 7) -> float:
    """Seconds of computation per second of audio, one utterance at a time: the median of ``repeats`` runs."""
    training, device = upstream.training, _device(upstream)
    generator = torch.Generator().manual_seed(0)
    wav = (0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=generator)).to(device)
    upstream.eval()
    times = []
    for _ in range(repeats + 2):
        _wait_for(device)
        start = time.perf_counter()
        upstream([wav])
        _wait_for(device)
        times.append(time.perf_counter() - start)
    upstream.train(training)
    warm = times[2:]  # the first two runs fill caches
    return sorted(warm)[repeats // 2] / seconds


def summary(upstream: nn.Module) -> dict[str, float | None]:
    """``parameters``, ``macs_per_second`` and, on this machine, ``rtf``.

    ``other_load``: the cores that other processes used before the real-time factor was measured, None if unknown;
    ``with_other_load``: whether they left fewer than torch's threads, so that the real-time factor is too high.
    """
    load = other_load()
    loaded = needs_more_cores(load, torch.get_num_threads())
    return {
        "parameters": parameters(upstream),
        "macs_per_second": macs_per_second(upstream),
        "rtf": real_time_factor(upstream),
        "other_load": None if load is None else round(load, 1),
        "with_other_load": loaded,
    }
