"""The command line of ``run_downstream.py``: s3prl's options, parsed without importing torch or s3prl."""

from __future__ import annotations

import argparse
import re
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from distilled_student import __version__
from distilled_student.common.errors import UserError, closest_option, did_you_mean
from distilled_student.host.overrides import MODES
from distilled_student.host.s3prl_names import downstream_names, upstream_names

DESCRIPTION = """Train and evaluate a downstream task on an upstream in s3prl's runner, with this package's upstreams
(distilled_student, teacher) and its joint task (multitask). The options are those of s3prl 0.4.18."""


class Parser(argparse.ArgumentParser):
    """Reports an error as one line, with the closest known option or choice."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            options = [name for action in self._actions for name in action.option_strings if len(name) > 2]
            close = closest_option(found[1].partition("=")[0], options)
            hint = f"did you mean `{close}`?" if close else "settings of the YAML file: -o config.KEY=VALUE"
            message = f"{found[1]}: no such option; {hint}"
        elif found := re.search(r"the following arguments are required: (\S+?)/", message):
            message = f"{found[1]}: missing: give {', '.join(MODES[:-1])} or {MODES[-1]}"
        elif found := re.search(r"argument (-\w)?.*: expected one argument", message):
            message = f"{found[1] or message.split()[1].rstrip(':')}: a value is missing"
        elif found := re.search(r"argument (\S+): invalid int value: '(.*)'", message):
            message = f"{found[1].partition('/')[0]} {found[2]}: expected a whole number"
        elif found := re.search(r"ambiguous option: (\S+) could match (.*)", message):
            message = f"{found[1]}: can be {found[2].replace(', ', ' or ')}: write it out"
        choice = re.search(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[3])
            option = choice[1].partition("/")[0]
            message = f"{option} {choice[2]}: expected {' or '.join(known)}{did_you_mean(choice[2], known)}"
        raise UserError(message)

    def format_help(self) -> str:
        """The options, and what ``-u`` and ``-d`` can be; read only now, since s3prl's files are read for it."""
        named = (("upstreams (-u)", upstream_names()), ("downstreams (-d)", downstream_names()))
        lists = [textwrap.fill(f"{what}: {', '.join(names)}", 100) for what, names in named]
        return "\n\n".join([super().format_help().rstrip(), *lists]) + "\n"


def make_parser() -> Parser:
    """s3prl's options with its defaults, but for ``--device``, whose default is the best of this machine."""
    parser = Parser(prog="run_downstream.py", description=DESCRIPTION)
    add = parser.add_argument
    add("--version", action="version", version=f"distilled-student {__version__}")
    add("-m", "--mode", choices=MODES, required=True)
    add("-t", "--evaluate_split", default="test", help="split to evaluate, or the audio file of -m inference")
    add("-o", "--override", help="settings that replace others: config.KEY.KEY=VALUE,,args.seed=1; lists: [a, b]")
    add("--backend", default="nccl", help="backend of distributed training")
    add("--local_rank", type=int, help="GPU of this process in distributed training; torchrun sets it")
    add("-e", "--past_exp", metavar="{CKPT_PATH,CKPT_DIR}", help="resume or evaluate a checkpoint, with its settings")
    add("-i", "--init_ckpt", metavar="CKPT_PATH", help="load the weights of a checkpoint, not its settings")
    add("-c", "--config", help="YAML file, or the name of one that ships: `distilled-student configs list`")
    add("-d", "--downstream", help="multitask, or a downstream of s3prl such as speech_commands")
    add("-v", "--downstream_variant", help="variant of a downstream, for those that have some")
    add("--hub", default="torch", choices=["torch", "huggingface"], help="where upstreams are looked up")
    add("-u", "--upstream", help="distilled_student, teacher, or an upstream of s3prl such as fbank or hubert_base")
    add("-k", "--upstream_ckpt", metavar="{PATH,URL,GOOGLE_DRIVE_ID}", help="checkpoint or folder of the upstream")
    add("-g", "--upstream_model_config", help="configuration file of the upstream, for those that need one")
    add("-r", "--upstream_refresh", action="store_true", help="download the upstream's weights again")
    add("-f", "--upstream_trainable", action="store_true", help="train the upstream too")
    add("-s", "--upstream_feature_selection", default="hidden_states", help="which features of the upstream to use")
    add("-l", "--upstream_layer_selection", type=int, help="one layer of the features that -s selects")
    add("--upstream_feature_normalize", action="store_true", help="normalise each layer before the weighted sum")
    add("--upstream_model_name", default="model.pt", help="file name in a Hugging Face Hub repository")
    add("--upstream_revision", help="commit of a Hugging Face Hub repository")
    add("-n", "--expname", help="write to result/downstream/EXPNAME")
    add("-p", "--expdir", help="write to this folder")
    add("-a", "--auto_resume", action="store_true", help="resume where the folder holds checkpoints")
    add("--push_to_hf_hub", default=False, help="needs huggingface_hub before 1.0")
    add("--hf_hub_org", help="needs huggingface_hub before 1.0")
    add("--seed", default=1337, type=int, help="seed of everything that is drawn")
    add("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one")
    add("--cache_dir", help="folder for downloaded weights")
    add("--verbose", action="store_true", help="print information about the model")
    add("--disable_cudnn", action="store_true", help="do not use cuDNN")
    return parser


def parse(arguments: Sequence[str]) -> Namespace:
    """The arguments as s3prl's own parser would give them. Raises UserError; exits after ``--help``."""
    return make_parser().parse_args(arguments)
