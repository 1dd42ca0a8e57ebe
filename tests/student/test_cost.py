"""Parameters and multiply-accumulates against counts by hand."""

from __future__ import annotations

import pytest

import distilled_student as ds
from distilled_student.host.upstreams import StudentUpstream
from distilled_student.student.cost import macs_per_second, parameters, real_time_factor


@pytest.mark.parametrize("size", ["paper", "slim"])
def test_macs_equal_a_count_by_hand(size: str) -> None:
    c, samples, macs = ds.named_size(size), 16_000, 0
    widths = [1, *c.conv_dim]
    for i, (kernel, stride) in enumerate(zip(c.conv_kernel, c.conv_stride, strict=True)):
        samples = (samples - kernel) // stride + 1
        macs += samples * widths[i] * widths[i + 1] * kernel
    frames, d, f = samples, c.hidden_size, c.feed_forward
    macs += frames * c.conv_dim[-1] * d
    macs += frames * d * (d // c.position_groups) * c.position_kernel
    macs += c.layers * (frames * (4 * d * d + 2 * d * f) + 2 * frames * frames * d)
    targets, hidden = len(c.targets), c.prediction_size
    macs += frames * targets * (d * hidden + hidden * c.target_size)
    counted = macs_per_second(StudentUpstream(ds.build_student(c)))
    assert macs < counted < 1.01 * macs  # padding rows and the statistics of the norm are counted too


def test_the_paper_student_has_the_published_number_of_operations() -> None:
    student = ds.build_student("paper")
    assert macs_per_second(StudentUpstream(student)) / 1e9 == pytest.approx(3.41 + 0.18, abs=0.02)
    assert parameters(student) == 27_035_776


def test_measuring_does_not_change_the_mode_of_the_model(small_logmel: ds.StudentConfig) -> None:
    upstream = StudentUpstream(ds.build_student(small_logmel)).train()
    assert real_time_factor(upstream, seconds=0.5, repeats=1) > 0
    assert macs_per_second(upstream) > 0
    assert upstream.training
