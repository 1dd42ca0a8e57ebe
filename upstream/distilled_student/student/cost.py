"""What a model costs: parameters, multiply-accumulates per second of audio, real-time factor on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distilled_student.common.audio import SAMPLE_RATE


def _in_place(onto: Sequence[int], left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(left) * right[1]


def _packed(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


COUNTED = {  # of what a student does, beside the products that torch counts
    torch.ops.aten.addmm_: _in_place,
    torch.ops.mkldnn._linear_pointwise: _packed,
}


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def has_fast_bf16(device: torch.device | None = None) -> bool:
    """Whether bfloat16 is worth while: on a CPU without instructions for it, it is slower than float32."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return on_gpu or any(value for name, value in able.items() if "bf16" in name)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of the large square products that fit into ``seconds``: what the device can do."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    fastest, end = math.inf, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or fastest == math.inf:
        left @ right
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest


@torch.enable_grad()
def macs_per_second(upstream: nn.Module) -> int:
    """Multiply-accumulates for one second of 16 kHz audio, counted on the convolutions and matrix products that run.

    Of the network as it is written down, as a training computes it: not of the faster ways to the same result.

    ``upstream`` takes a list of 1-D waveforms, as s3prl's do.
    """
    training, fast = upstream.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel cannot be looked into
    try:
        counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
        with counter, sdpa_kernel(SDPBackend.MATH):  # nor can the CPU's fused attention
            upstream.eval()([torch.zeros(SAMPLE_RATE, device=_device(upstream))])
        return counter.get_total_flops() // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
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
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        upstream([wav])
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    upstream.train(training)
    return sorted(times[2:])[repeats // 2] / seconds  # the first two warm caches up


def summary(upstream: nn.Module) -> dict[str, float]:
    """``parameters``, ``macs_per_second`` and, on this machine, ``rtf``."""
    return {
        "parameters": parameters(upstream),
        "macs_per_second": macs_per_second(upstream),
        "rtf": real_time_factor(upstream),
    }
