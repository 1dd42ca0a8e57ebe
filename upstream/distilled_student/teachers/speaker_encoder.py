"""The interface of a speaker encoder: waveforms in, an embedding of each utterance out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from distilled_student.common.provenance import weights_fingerprint
from distilled_student.student.cost import TakesList, macs_per_second, parameters
from distilled_student.student.lengths import mask_if_padded


class SpeakerEncoder(nn.Module):
    """A model that maps an utterance to an embedding of its speaker.

    Attributes:
        embedding_size: Features of an embedding.
        revision: The commit on the hub that its weights were read from; None if they were not.
    """

    revision: str | None = None
    embedding_size: int

    def embed(self, waveforms: Tensor) -> Tensor:
        """``(batch, samples)`` without padding -> ``(batch, features)``."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The embeddings ``(batch, features)``. That of an utterance does not depend on its padding.

        Utterances of the same length are encoded together.

        Args:
            waveforms: ``(batch, samples)`` float32 at 16 kHz in [-1, 1].
            lengths: ``(batch,)`` valid samples of each utterance; None if nothing is padded.
        """
        if mask_if_padded(lengths, waveforms.shape[1]) is None:
            return self.embed(waveforms)
        found = waveforms.new_zeros(len(waveforms), self.embedding_size)
        for samples in lengths.unique().tolist():
            rows = (lengths == samples).nonzero()[:, 0].to(waveforms.device)
            found[rows] = self.embed(waveforms[rows, :samples]).to(found.dtype)
        return found

    def settings(self) -> str:
        """As text, all settings that affect the result and that ``repr`` of the modules does not show."""
        return ""

    def fingerprint(self) -> dict[str, Any]:
        """Number and hash of the weights, see `weights_fingerprint`."""
        return weights_fingerprint(self)

    def parameter_count(self) -> int:
        """Number of parameters."""
        return parameters(self)

    def macs_per_second(self) -> int | None:
        """Multiply-accumulates for one second of audio; None if they cannot be counted."""
        return macs_per_second(TakesList(self))
