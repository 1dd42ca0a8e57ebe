"""The config of the paper's setting: known keys, the paper's values, and numbers that must be finite."""

from __future__ import annotations

import pytest

from distilled_student.common.errors import UserError
from distilled_student.common.settings import find_config, read_yaml, typed
from distilled_student.corpora.keywords import KEYWORDS
from distilled_student.multitask.settings import ExpertSettings
from distilled_student.multitask.tasks import kws, sv
from distilled_student.multitask.tasks.settings import LOSSES

PATH = find_config("default", kind="multitask")


def test_the_default_config_has_known_keys_only() -> None:
    expert = typed(ExpertSettings, read_yaml(PATH)["downstream_expert"], PATH)
    assert typed(kws.Settings, expert.tasks["kws"], PATH).keywords == KEYWORDS
    assert typed(sv.Settings, expert.tasks["sv"], PATH).loss.name == "angular"


def test_the_default_config_has_the_papers_values() -> None:
    config = read_yaml(PATH)
    assert config["optimizer"] == {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-4}
    assert config["downstream_expert"]["update"] == "alternate"
    assert config["downstream_expert"]["schedule"] == {"kws": 1, "sv": 1}
    assert config["runner"]["eval_dataloaders"] == ["dev"], "the test data never choose a checkpoint"


@pytest.mark.parametrize("loss", LOSSES)
def test_another_loss_needs_its_name_only(loss: str) -> None:
    settings = read_yaml(PATH)["downstream_expert"]["tasks"]["sv"]
    settings["loss"]["name"] = loss
    assert (
        typed(sv.Settings, settings, PATH).loss.full_margin == {"softmax": 0, "angular": 4, "am": 0.4, "aam": 0.2}[loss]
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
@pytest.mark.parametrize("key", ["crop_seconds", "loss.scale", "augment.snr.1", "augment.noise"])
def test_a_number_that_is_not_finite_gives_one_line_with_the_key(key: str, value: float | str) -> None:
    settings: dict = {"augment": {"snr": [0.0, 1.0]}, "loss": {}}
    *path, last = key.split(".")
    group = settings
    for name in path:
        group = group[name]
    group[int(last) if last.isdigit() else last] = value
    with pytest.raises(UserError, match=rf"default\.yaml: {key.replace('.', '[.]')}: needs"):
        typed(sv.Settings, settings, PATH)


@pytest.mark.parametrize("module", [kws, sv], ids=["kws", "sv"])
def test_augmentation_is_off_by_default(module: object) -> None:
    augment = module.Settings().augment
    assert augment.speed == augment.reverb == augment.noise == augment.gain == 0
