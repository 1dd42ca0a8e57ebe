"""The card of a joint run says what was used and reached: data, classes, results with intervals, cost, licence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.trees import tasks

from distilled_student import StudentConfig, build_student, save_student
from distilled_student.common.settings import find_config
from distilled_student.host import launch
from distilled_student.multitask.evaluate import evaluate
from distilled_student.multitask.model_card import _command

RUNNER = {"total_steps": 2, "gradient_clipping": 1.0, "gradient_accumulate_steps": 1, "log_step": 2, "eval_step": 2}
RUNNER |= {"save_step": 2, "max_keep": 1, "eval_dataloaders": ["dev"]}


def test_the_card_of_a_joint_run(small_logmel: StudentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_student(build_student(small_logmel), tmp_path / "my-student")
    (tmp_path / "my-student/README.md").write_text("| licence | CC0 (my teacher) |\n")
    values = tasks(tmp_path)
    config = {
        "runner": RUNNER,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-2},
        "downstream_expert": {"tasks": values},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    models = ["-u", "distilled_student", "-k", str(tmp_path / "my-student"), "-f", "-d", "multitask"]
    exp = tmp_path / "exp"
    options = ["-o", f"config.runner.log_step=1,,config.downstream_expert.tasks.kws.train_root={tmp_path}/sc/train"]
    options += ["-c", str(tmp_path / "c.yaml"), "-p", str(exp), "--device", "cpu"]
    assert launch.main(["-m", "train", *models, *options]) == 0
    results = evaluate(exp, device="cpu")
    card = (exp / "README.md").read_text()
    card = card.replace("\\", "")  # Markdown's escapes
    lines = [line for line in card.split("\n\n")[1].splitlines() if line.startswith("| ")][1:]  # without the heading
    rows = dict(line.strip("| ").split(" | ") for line in lines)
    assert rows["upstream"] == "distilled_student, from my-student, fine-tuned"
    assert rows["checkpoint"] == "best-dev.ckpt, step 2"
    assert rows["kws: classes"] == "_silence_, _unknown_, yes, no"
    assert rows["sv: classes"] == "4 (training speakers)"
    # four speakers with two sessions of two utterances, of 0.5 and 0.75 s
    train = json.loads((exp / "provenance.json").read_text())["data"]["train"]
    hours = sum(0.5 + 0.25 * u for u in range(2)) * 2 * 4 / 3600
    assert rows["sv: training data"] == f"{tmp_path.name}/vox: 16 utterances, {hours:.2f} hours"
    assert train["sv"]["utterances"] == 16
    assert rows["kws: training data"].startswith("sc/train: ")
    assert rows["kws: test data"] == "8 utterances, 2 speakers"
    assert rows["sv: test data"] == "4 utterances, 2 speakers, 6 trials"
    assert rows["sv: test eer"] == f"{results['sv']['eer']:.2f} (no interval)", "two test speakers have none"
    scores = np.load(exp / "scores-test.npz")
    right = 100 * (scores["kws_labels"] == scores["kws_predicted"]).mean()
    assert rows["kws: test accuracy"] == f"{right:.2f} (no interval)"
    assert rows["parameters"].startswith(f"{results['upstream']['parameters'] / 1e6:.2f} M in the upstream")
    assert rows["licence"] == "CC0 (my teacher) (my-student); the licences of the training data apply too"
    by_class = results["kws"]["per_class"]
    for word, row in zip(by_class, results["kws"]["confusion"], strict=True):
        share = f"{100 * row[results['kws']['labels'].index(word)] / sum(row):.1f}" if sum(row) else ""
        assert f"| {word} | {share} | {sum(row)} |" in card
    development = [json.loads(line) for line in (exp / "log.jsonl").read_text().splitlines() if '"dev"' in line]
    assert f"| 2 | {development[-1]['score']:.2f} |" in card
    header, _, *steps = card.split("| step of training | ")[1].split("\n\n")[0].splitlines()
    assert "sv/loss" in header and [step[:4] for step in steps] == ["| 1 ", "| 2 "]
    command = "run_downstream.py -m train -u distilled_student -k my-student -s hidden_states -f -d multitask -c c.yaml"
    overrides = "-o config.runner.log_step=1,,config.downstream_expert.tasks.kws.train_root=train"
    assert f"    {command} -p exp --seed 1337 {overrides}\n" in card
    assert "bootstrap over test speakers. " in card and "like those of the test data" in card
    assert "## Limits" in card and str(tmp_path) not in card
    evaluate(exp, split="dev", device="cpu", overrides=["config.downstream_expert.tasks.kws.eval_batch_size=2"])
    of_dev = (exp / "README.md").read_text().replace("\\", "")
    assert "bootstrap over development speakers" in of_dev and "like those of the development data" in of_dev
    assert "have chosen the checkpoint" in of_dev and "test utterances" not in of_dev and overrides in of_dev
    evaluate(exp, device="cpu", trials="veri_test.txt")
    evaluate(exp, device="cpu")
    other = (exp / "README.md").read_text().replace("\\", "")
    assert f"| veri_test | {results['sv']['eer']:.2f} | 2 | 6 |" in other
    # a card of the user's own is kept
    (exp / "README.md").write_text("mine")
    evaluate(exp, device="cpu")
    assert (exp / "README.md").read_text() == "mine" and "README.md: is not a card of this package" in caplog.text


@pytest.mark.parametrize(
    ("override", "printed"),
    [
        ("config.downstream_expert.data=/home/me/my words", "-o 'config.downstream_expert.data=my words'"),
        ("config.x.extra_roots=['/a/b', \"/c/d\", e/f]", """-o 'config.x.extra_roots=['"'"'b'"'"', "d", e/f]'"""),
        ("args.expdir=/a/b,,config.runner.total_steps=2", "-o config.runner.total_steps=2"),
        ("None", ""),
        (None, ""),
    ],
)
def test_the_command_of_a_card_has_the_overrides_of_the_training_without_its_folders(
    override: str | None, printed: str
) -> None:
    config = str(find_config("own", "multitask").absolute())
    arguments = {"upstream": "distilled_student", "downstream": "multitask", "config": config, "expdir": "/a/exp/own"}
    found = _command({**arguments, "seed": 3, "override": override})
    expected = f"run_downstream.py -m train -u distilled_student -d multitask -c own -p own --seed 3 {printed}"
    assert found == expected.strip()
