from __future__ import annotations

import pytest

from distilled_student.multitask.expert import ExpertSettings
from distilled_student.multitask.tasks import kws, sv
from distilled_student.settings import find_config, read_yaml, typed

PATH = find_config("default", kind="multitask")


def test_the_shipped_config_has_no_key_that_the_code_does_not_know() -> None:
    expert = typed(ExpertSettings, read_yaml(PATH)["downstream_expert"], PATH)
    assert typed(kws.Settings, expert.tasks["kws"], PATH).keywords == kws.KEYWORDS
    assert typed(sv.Settings, expert.tasks["sv"], PATH).loss.name == "angular"


def test_the_shipped_config_is_the_papers_where_the_paper_speaks() -> None:
    config = read_yaml(PATH)
    assert config["optimizer"] == {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-4}
    assert config["downstream_expert"]["update"] == "alternate"
    assert config["downstream_expert"]["schedule"] == {"kws": 1, "sv": 1}
    assert config["runner"]["eval_dataloaders"] == ["dev"], "test never chooses"


@pytest.mark.parametrize("module", [kws, sv], ids=["kws", "sv"])
def test_augmentation_is_off_by_default(module: object) -> None:
    augment = module.Settings().augment
    assert augment.speed == augment.reverb == augment.noise == augment.gain == 0
