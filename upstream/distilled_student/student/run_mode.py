"""How the network is run at the moment: exported to a graph, or evaluated on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether a graph is being exported. It must hold for every length, so the code must not branch on lengths."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def is_cpu_inference(x: Tensor) -> bool:
    """Whether ``x`` is float32 on a CPU with oneDNN, and nothing else than the result is wanted.

    That is: no gradients, no export, no `torch.compile` and no autocast. Then the faster operations that exist only for
    this case can be used.
    """
    is_supported = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    is_plain = not (torch.is_grad_enabled() or is_exporting() or torch.compiler.is_compiling())
    return is_supported and is_plain and not torch.is_autocast_enabled("cpu")
