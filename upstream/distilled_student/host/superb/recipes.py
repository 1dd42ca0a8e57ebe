"""s3prl's typed recipes (``SuperbKS``, ``SuperbASV``): the command ``s3prl-main``, and functions that patches use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from distilled_student.common.devices import pick_device
from distilled_student.common.errors import UserError, did_you_mean, message_of
from distilled_student.host.overrides import literal, set_key
from distilled_student.host.plugin import register
from distilled_student.host.superb.recipe_names import check_recipe, recipe_names


def parse_overrides(options: Sequence[str]) -> dict[str, Any]:
    """``--train.total_steps 10 --build_upstream.name fbank`` as nested settings.

    Values are Python literals, or YAML's null, true and false; other text is a string.

    Raises:
        UserError: an option without a value, or a path through a plain value.
    """
    config: dict[str, Any] = {}
    for position in range(0, len(options), 2):
        option = options[position]
        if not option.startswith("--") or "=" in option or position + 1 == len(options):
            raise UserError(f"{option}: settings are written --KEY.KEY VALUE")
        value = literal(options[position + 1].strip())
        set_key(config, option.removeprefix("--").split("."), value, option)
    return config


def speaker_verification_files(root: Path) -> tuple[list[str], list[str], list[str], dict[str, int]]:
    """VoxCeleb1's training, validation (none) and test files, and the number of each training speaker."""
    from distilled_student.corpora.speakers import speaker_files

    key = "prepare_data.dataset_root"
    training, testing = (speaker_files(root / part / "wav", key) for part in ("dev", "test"))
    train, test = ([str(file) for files in part.values() for file in files] for part in (training, testing))
    return train, [], test, {speaker: number for number, speaker in enumerate(training)}


def speaker_verification_trials(root: Path) -> list[tuple[int, str, str]]:
    """For each line of ``veri_test.txt`` the label and s3prl's names of both utterances; empty without that file."""
    from distilled_student.corpora.speakers import read_trials

    if not (root / "veri_test.txt").is_file():
        return []
    trials, _ = read_trials(root / "veri_test.txt", [root / "test" / "wav"])
    names = ["-".join(path.parts[-3:]) for path in trials.paths]
    pairs = zip(trials.labels, trials.left, trials.right, strict=True)
    return [(int(label), names[left], names[right]) for label, left, right in pairs]


@contextlib.contextmanager
def _user_errors(recipe: str, hub: ModuleType) -> Iterator[None]:
    """Turn what s3prl raises for a wrong setting or file into one line that names it."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise UserError(f"{recipe}: --{error.full_key}: {str(error.msg or error).splitlines()[0]}") from error
    except AttributeError as error:
        if error.obj is not hub:
            raise
        suggestion = did_you_mean(error.name, hub.options())
        raise UserError(f"{recipe}: --build_upstream.name {error.name}: no such upstream{suggestion}") from error
    except TypeError as error:  # s3prl passes settings as keyword arguments
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not unknown:
            raise
        raise UserError(f"{recipe}: {unknown[1]}: no such setting") from error
    except (UserError, OSError) as error:
        raise UserError(f"{recipe}: {message_of(error)}") from error


def run(arguments: Sequence[str]) -> None:
    """s3prl's ``s3prl-main RECIPE --KEY.KEY VALUE ...`` with the plugin's upstreams; ``--device`` is optional.

    Raises:
        UserError: an unknown recipe, upstream or setting, a missing setting, an unreadable file.
    """
    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: s3prl-main RECIPE --KEY.KEY VALUE ...\n       s3prl-main RECIPE --print_config\n")
        print(f"recipes: {', '.join(recipe_names())}")
        return
    check_recipe(name)
    register()
    from s3prl import hub, problem

    if "--device" not in options:
        options = ["--device", pick_device(None), *options]
    with _user_errors(name, hub):
        getattr(problem, name)().main(options)
