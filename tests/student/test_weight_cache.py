"""An evaluation after a change of the weights uses the changed weights, however they were changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import tone

import distilled_student as ds

WAVE = tone(0.5)[None]


def fused_step(student: ds.Student) -> None:
    """A step of a fused optimizer, which torch does not count as a change of the weights."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, fused=True)
    student(WAVE).predictions.square().sum().backward()
    optimizer.step()


def in_place(student: ds.Student) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.1)


def training_between(student: ds.Student) -> None:
    fused_step(student.train())
    student.eval()


def data_in_place(student: ds.Student) -> None:
    for parameter in student.parameters():
        parameter.data.mul_(1.1)


@pytest.mark.parametrize("change", [fused_step, in_place, training_between, data_in_place])
def test_an_evaluation_after_a_change_of_the_weights_uses_them(
    change: Callable[[ds.Student], None], student_variant: ds.Student
) -> None:
    with torch.no_grad():
        before = student_variant(WAVE).last_hidden_state.clone()
    change(student_variant)
    with torch.no_grad():
        found, expected = student_variant(WAVE), copy.deepcopy(student_variant)(WAVE)  # a copy has computed nothing yet
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.predictions, expected.predictions)
    assert not torch.equal(before, expected.last_hidden_state)
