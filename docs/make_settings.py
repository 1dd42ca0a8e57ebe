"""Writes docs/settings.md: every key of the settings files, from the dataclasses that read them and their docstrings.

python docs/make_settings.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import omegaconf

from distilled_student.benchmark import suite
from distilled_student.common.effect_settings import EffectSettings
from distilled_student.common.settings import find_config, parse_yaml
from distilled_student.distillation.config import DistillConfig, TeacherConfig
from distilled_student.multitask.settings import ExpertSettings
from distilled_student.multitask.tasks import kws_settings, sv_settings
from distilled_student.multitask.tasks.settings import AugmentSettings, LossSettings, TaskSettings
from distilled_student.student.config import StudentConfig

FILE = Path(__file__).with_name("settings.md")
DISTILL, JOINT = find_config("hubert-base", "distill"), find_config("default", "multitask")

PATHS = ("output", "paths", "train_root", "test_root", "root")  # where files are is the user's choice

INTRODUCTION = """\
<!-- Made by docs/make_settings.py from the docstrings of the dataclasses. Change those, then run the script again. -->
# Settings

Every key of the YAML files. Keys of nested groups are written with dots, as on the command line: `data.paths=[DIR]`.
A wrong key, type or value is one line that names the file and the key. `distilled-student configs list` shows the
configs that ship with the package; SUPERB's own tasks are in [superb.md](superb.md).

A file can name another one at its top and hold only the settings that differ: `base: multitask/edge`. The base has
the same kind of settings; it is a config that ships, or a file, relative to the folder of the file that names it.
Groups are merged key by key; values, lists and `schedule` replace those of the base. `distilled-student configs show
NAME --merged` prints all settings of a config that ships. Checkpoints and `provenance.json` have all settings, too.

The last column, where there is one, is the value in the config of the paper's setting and where the value comes from:
"paper" for Kerpicci et al. (Interspeech 2023), "ours" for what the paper does not state, in some rows with the reason.
"ours: DistilHuBERT's" is the value that DistilHuBERT's authors published (Chang et al. 2022). An empty cell means that
this config keeps the default.
"""

RUNNER = """\
## `runner`: keys that s3prl does not have

In addition to s3prl's own keys (`total_steps`, `log_step`, `eval_step`, ...), `run_downstream.py` reads these keys in
the section `runner`, for every downstream. All of them are ours.

| key of `runner` | type | default | meaning |
|---|---|---|---|
| `bf16` | true or false | `false` | The upstream computes in bfloat16 while training, on a CPU or GPU. |
| `upstream_lr` | number or null | `null` | Learning rate of the upstream with `-f`; null: the optimizer's. |
| `layer_decay` | number or null | `null` | A layer of the upstream has the learning rate of the next one times this. |
| `average` | number or null | `null` | Evaluations use an exponential moving average of the weights with this decay. |
| `weights_only` | true, false, `heads` | `false` | With `-i`: a new run from its weights; `heads`: from its heads. |
| `max_skipped` | integer | `10` | Training stops after this many steps in a row without a finite gradient. |
"""


class Section(NamedTuple):
    """One table of the document.

    Attributes:
        title: The heading.
        text: Sentences between heading and table.
        schema: The dataclass.
        base: A dataclass whose keys have a table of their own, and are left out here.
        config: The shipped config with the values of the paper's setting.
        prefix: The group in ``config`` that the keys are in.
    """

    title: str
    text: str
    schema: Any
    base: Any = None
    config: Path | None = None
    prefix: str = ""


PARTS: list[tuple[str, list[Section | str]]] = [
    (
        "Distillation: `distilled-student distill FILE [KEY=VALUE]...`",
        [
            Section("The config", "", DistillConfig, config=DISTILL),
            Section("`teachers`", "A list of groups with these keys.", TeacherConfig),
            Section("`data`", "", get_type_hints(DistillConfig)["data"], config=DISTILL, prefix="data."),
            Section("`data.augment`", "Each effect has a probability; 0 turns it off.", EffectSettings),
            Section("`student`", "A named size (`configs/student`) or these keys.", StudentConfig),
        ],
    ),
    (
        "Joint training: `run_downstream.py -d multitask`",
        [
            RUNNER,
            Section("`downstream_expert`", "", ExpertSettings, config=JOINT, prefix="downstream_expert."),
            Section("`downstream_expert.tasks.NAME`: keys of every task", "", TaskSettings),
            Section(
                "`downstream_expert.tasks.kws`: keyword spotting",
                "In addition to the keys of every task:",
                kws_settings.Settings,
                TaskSettings,
                JOINT,
                "downstream_expert.tasks.kws.",
            ),
            Section(
                "`downstream_expert.tasks.sv`: speaker verification",
                "In addition to the keys of every task:",
                sv_settings.Settings,
                TaskSettings,
                JOINT,
                "downstream_expert.tasks.sv.",
            ),
            Section(
                "`downstream_expert.tasks.sv.loss`",
                "",
                LossSettings,
                config=JOINT,
                prefix="downstream_expert.tasks.sv.loss.",
            ),
            Section("`downstream_expert.tasks.NAME.augment`", "", AugmentSettings),
        ],
    ),
    (
        "Benchmark suites: `distilled-student benchmark FILE`",
        [
            Section("The suite", "", suite.SuiteFile),
            Section("`models.NAME`", "", suite.SuiteModel),
            Section("`settings.NAME`", "", suite.Setting),
        ],
    ),
]


def meanings(schema: Any) -> dict[str, str]:
    """Key -> its entry in the section ``Attributes`` of the docstring, or else of that of a base class."""
    found: dict[str, str] = {}
    for part in reversed(inspect.getmro(schema)):
        _, _, block = (inspect.getdoc(part) or "").partition("Attributes:\n")
        block = textwrap.dedent(block.partition("\n\n")[0])
        entries = re.findall(r"^(\w+): (.*(?:\n[ ]+.*)*)", block, re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found


def type_name(kind: Any) -> str:
    """A type annotation in words."""
    text = kind if isinstance(kind, str) else kind.__name__
    words = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "None": "null", "Any": "any"}
    found = re.fullmatch(r"(list|dict)\[(.*)\]", text)
    if found and found[1] == "list":
        items = type_name(found[2])
        return f"list of {items}" if items == "text" else f"list of {items}s"
    if found or text.endswith(("Config", "Settings")):
        return "group"
    return " or ".join(type_name(part) if "[" in part else words.get(part, part) for part in text.split(" | "))


def default_of(field: dataclasses.Field) -> str:
    """The default as YAML."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default in (dataclasses.MISSING, omegaconf.MISSING):
        return "required"
    else:
        value = field.default
    return "see below" if dataclasses.is_dataclass(value) else f"`{as_yaml(value)}`"


def as_yaml(value: Any) -> str:
    """A value on one line, as a settings file has it: YAML reads it as the same value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        # with quotes: without them YAML reads the keywords yes, no, on and off as booleans
        return f"[{', '.join(json.dumps(item) if isinstance(item, str) else as_yaml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", f"{value:g}")  # YAML reads 1e-07 as text, 1.0e-07 as a number
    return str(value) if value != "" else '""'


def config_values(config: Path) -> dict[str, str]:
    """Dotted key -> value and source of each line ``key: value # comment`` of a config."""
    found, groups = {}, []
    for line in config.read_text(encoding="utf-8").splitlines():
        parts = re.fullmatch(r"( *)(\w+):(?: +([^#]*?))?(?: +# *(.*))?", line)
        if parts is None:
            continue
        indent, key, value, comment = len(parts[1]), parts[2], parts[3], parts[4] or ""
        groups = [group for group in groups if group[0] < indent]
        path = ".".join([*(name for _, name in groups), key])
        groups.append((indent, key))
        if value:
            source = comment if comment.startswith("ours") else "paper"
            found[path] = f"`{as_yaml(parse_yaml(value))}`" + ("" if key in PATHS else f" ({source})")
    return found


def cell(text: str) -> str:
    """Text for a cell of a table: code in single backticks, no bars, and YAML's words for Python's."""
    words = {"None": "null", "True": "true", "False": "false"}
    text = re.sub(r"\b(None|True|False)\b", lambda found: words[found[0]], text)
    return text.replace("``", "`").replace("|", "\\|")


def table(section: Section) -> Iterator[str]:
    """The lines of a section's table."""
    schema = section.schema
    left_out = {field.name for field in dataclasses.fields(section.base)} if section.base else set()
    explained, values = meanings(schema), config_values(section.config) if section.config else {}
    columns = [f"key of {section.title.partition(':')[0].replace('The', 'the')}", "type", "default", "meaning"]
    columns += [f"in {section.config.parent.name}/{section.config.name}"] if section.config else []
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for field in dataclasses.fields(schema):
        if field.name in left_out:
            continue
        cells = [f"`{field.name}`", type_name(field.type), default_of(field), explained.get(field.name, "")]
        cells += [values.get(section.prefix + field.name, "")] if section.config else []
        yield f"| {' | '.join(map(cell, cells))} |"


def document() -> str:
    """The whole document."""
    lines = [INTRODUCTION]
    for title, sections in PARTS:
        lines += [f"## {title}", ""]
        for section in sections:
            if isinstance(section, str):
                lines += [section.replace("## ", "### ", 1)]
                continue
            lines += [f"### {section.title}", "", *([section.text, ""] if section.text else []), *table(section), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
