"""What our runner adds to s3prl's: ``runner.bf16`` and ``runner.upstream_lr``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class RunnerOptions:
    """Goes before s3prl's ``Runner``, whose methods it extends."""

    _full_precision: Callable[..., Any] | None = None  # the upstream's own forward, while training runs in bfloat16

    def _load_weight(self, model: Any, name: str) -> None:
        if name == "Optimizer":  # before its state is loaded, which is that of all its groups
            self._slow_upstream(model)
        super()._load_weight(model, name)

    def _slow_upstream(self, optimizer: torch.optim.Optimizer) -> None:
        """``runner.upstream_lr``: a learning rate of the upstream's own; s3prl has one for everything it trains."""
        rate = self.config["runner"].get("upstream_lr")
        upstream = {id(parameter) for parameter in self.upstream.model.parameters()}
        for group in [] if rate is None else list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in upstream]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in upstream]
                optimizer.add_param_group({**group, "params": own, "lr": rate})

    @contextmanager
    def _half_precision(self) -> Iterator[None]:
        """``runner.bf16: true``: the upstream trains in bfloat16, on CPU or GPU; s3prl has float16 on GPUs only."""
        upstream = self.upstream.model
        if not self.config["runner"].get("bf16", False):
            yield
            return
        self._full_precision = forward = upstream.forward
        upstream.forward = torch.autocast(torch.device(self.args.device).type, torch.bfloat16)(forward)
        try:
            yield
        finally:
            upstream.forward, self._full_precision = forward, None

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """s3prl's, always in float32: what chooses a checkpoint is what an evaluation of it will find."""
        upstream = self.upstream.model
        forward = upstream.forward
        upstream.forward = self._full_precision or forward
        try:
            calibrate = getattr(getattr(self.downstream.model, "module", self.downstream.model), "calibrate", None)
            if self._full_precision is not None and calibrate is not None:
                calibrate(self._features)
            return super().evaluate(*args, **kwargs)
        finally:
            upstream.forward = forward

    @torch.no_grad()
    def _features(self, wavs: Sequence[Any]) -> list[torch.Tensor]:
        """What an evaluation hands to the downstream: features of each utterance, without dropout."""
        models = [entry.model for entry in (self.upstream, self.featurizer)]
        were = [model.training for model in models]
        for model in models:
            model.eval()
        wavs = [torch.as_tensor(wav, dtype=torch.float32, device=self.args.device) for wav in wavs]
        features = self.featurizer.model(wavs, self.upstream.model(wavs))
        for model, was in zip(models, were, strict=True):
            model.train(was)
        return features

    def train(self) -> None:
        """s3prl's, in half precision where the configuration says so."""
        with self._half_precision():
            super().train()
