"""Speaker encoders of `transformers`: a speech encoder, a TDNN and statistics (x-vectors, Snyder et al. 2018)."""

from __future__ import annotations

import math
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from distilled_student.checkpoints.foreign import CONFIG, read_normalization
from distilled_student.common.files import read_json
from distilled_student.student.config import receptive_field
from distilled_student.student.frontend import normalize_waveforms
from distilled_student.teachers.speaker_encoder import SpeakerEncoder
from distilled_student.teachers.transformers_folder import load_model

# read in training only: a mask, and the layers after the embedding
UNUSED_WEIGHTS = r"masked_spec_embed$|^objective\.|^classifier\."


class XVector(SpeakerEncoder):
    """A ``...ForXVector`` model of `transformers`; the embedding is that before its classifier."""

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize
        config = model.config
        config.layerdrop, config.apply_spec_augment = 0.0, False
        self.embedding_size = config.xvector_output_dim
        frames = 2 + sum(d * (k - 1) for k, d in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True))
        # two frames after the TDNN: the deviation of one does not exist
        self.shortest = receptive_field(config.conv_kernel, config.conv_stride) + (frames - 1) * math.prod(
            config.conv_stride
        )

    def embed(self, waveforms: Tensor) -> Tensor:
        """As if silence followed an utterance that is shorter than two frames of the TDNN."""
        if self.normalize:
            waveforms = normalize_waveforms(waveforms)
        return self.model(F.pad(waveforms, (0, max(0, self.shortest - waveforms.shape[1])))).embeddings

    def settings(self) -> str:
        return f"{self.normalize} {self.model.config.to_json_string()}"


def read_xvector(folder: Path) -> XVector:
    """The model in a `transformers` folder.

    Raises:
        UserError: the folder is damaged or holds another model.
    """
    import transformers

    where, what = f"{folder}: is not a speaker encoder of transformers", "is not a speaker encoder (...ForXVector): "
    model = load_model(transformers.AutoModelForAudioXVector, folder, UNUSED_WEIGHTS, where, what)
    return XVector(model, read_normalization(folder, read_json(folder / CONFIG))["normalize"])
