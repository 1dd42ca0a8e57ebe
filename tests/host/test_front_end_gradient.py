"""``-f`` trains an upstream's front end too, or a line says that s3prl does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.references import FORMS, SMALL, save_fairseq

from distilled_student.host import launch

ONE_STEP = "config.runner.total_steps=1,,config.runner.save_step=1,,config.runner.eval_step=9,,config.optimizer.lr=1.0"


@pytest.mark.parametrize("upstream", ["teacher", "hubert_local"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_front_end_without_a_gradient_is_named_and_that_of_a_teacher_has_one(
    upstream: str, trained: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save_fairseq(tmp_path / "converted.pt", "hubert", SMALL, FORMS["group-post"])
    before = torch.load(file, weights_only=False)["model_weight"]["feature_extractor.conv_layers.0.0.weight"]
    run = ["-m", "train", "-u", upstream, "-k", str(file), "-d", "example", "-p", str(tmp_path / "exp"), "-o", ONE_STEP]
    assert launch.main([*run, "-f"] if trained else run) == 0
    warning = f"-u hubert_local -f: the front end gets no gradient in s3prl; to train all of it: -u teacher -k {file}"
    assert (warning in capsys.readouterr().err) is (trained and upstream == "hubert_local")
    if trained:
        state = torch.load(tmp_path / "exp" / "states-1.ckpt", weights_only=True)["Upstream"]
        after = next(value for name, value in state.items() if value.shape == before.shape)
        assert torch.equal(after, before) is (upstream == "hubert_local")
