"""Registers our upstreams, our downstream and our runner with s3prl."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from distilled_student.host.overrides import override
from distilled_student.patches.apply import apply_patches


def _upstream(name: str) -> Callable[..., nn.Module]:
    """The factory ``name`` of :mod:`distilled_student.host.upstreams`, imported at its first call."""

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        return getattr(importlib.import_module("distilled_student.host.upstreams"), name)(*args, **kwargs)

    return build


def _downstream() -> ModuleType:
    """An alias of `distilled_student.multitask.expert`: importing the file again would make its classes twice."""

    def attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("distilled_student.multitask.expert"), name)

    alias = ModuleType("s3prl.downstream.multitask.expert", "Alias of distilled_student.multitask.expert.")
    alias.__getattr__ = attribute
    return alias


@functools.cache
def register() -> None:
    """Make s3prl usable on today's libraries and register ``distilled_student``, ``teacher`` and ``multitask``.

    Call it before the first import of s3prl. Calling it again does nothing.

    Raises:
        UserError: a patched module of s3prl is imported already; its message names the module.
    """
    apply_patches()
    from s3prl import hub, run_downstream

    from distilled_student.host.runner import Runner

    hub.distilled_student = _upstream("student_upstream")
    hub.teacher = _upstream("teacher_upstream")
    expert = _downstream()
    sys.modules[expert.__name__] = expert
    run_downstream.Runner = Runner
    run_downstream.override = override  # s3prl's evaluates values as code
    run_downstream.hack_isinstance = lambda: None  # s3prl's replaces the builtin isinstance, for torch before 1.8
