# SPDX-License-Identifier: Apache-2.0
"""What suits a CPU is measured, and changes nothing of the run; what a dry run says of it."""

from __future__ import annotations

import pytest
import torch

from xvla_ros.training import pace, trainer
from xvla_ros.training.config import APART, Drawn, TrainingError


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch):
    monkeypatch.setattr(pace, "usable_cores", lambda: 4)
    monkeypatch.setattr(trainer, "usable_cores", lambda: 4)
    monkeypatch.delenv(pace.THREADS_VARIABLE, raising=False)


def weights(made):
    return {name: value.clone() for name, value in made.network.state_dict().items()}


def test_what_suits_a_cpu_is_measured_without_changing_the_run(begin):
    made, said = begin(batch={"size": 8}), []
    before = weights(made)
    pace.suit_cpu(made, said.append)
    assert [line.split(":")[0] for line in said] == ["threads", "workers"]
    assert all(torch.equal(before[name], value) for name, value in weights(made).items())
    assert all(each.grad is None for each in made.network.parameters()) and made.step == 0
    changed = begin("other", batch={"size": 8, "workers": 0}).run()
    assert made.run()["loss"] == pytest.approx(changed["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.3, 2: 0.2, 4: 0.1}, 4),  # twice as fast with all cores
        ({1: 0.3, 2: 0.1, 4: 0.2}, 2),
        ({1: 0.105, 2: 0.1, 4: 0.1}, 1),  # a gain too small to change anything
        ({1: 0.01, 2: 0.001, 4: 0.001}, 1),  # a step too short to be worth it
    ],
)
def test_the_fastest_number_of_threads_is_taken(begin, monkeypatch, seconds, chosen):
    monkeypatch.setattr(pace, "_trial", lambda made: (lambda: seconds[torch.get_num_threads()], 0.0))
    said = []
    pace.suit_cpu(begin(batch={"size": 8}), said.append)
    assert torch.get_num_threads() == chosen and said[0].startswith(f"threads: {chosen} of 4 cores")


@pytest.mark.parametrize(("prepared", "workers"), [(0.001, 0), (0.05, 1), (0.1, 2), (0.25, 4), (9.0, 4)])
def test_as_many_processes_prepare_samples_as_steps_use_them_up(begin, monkeypatch, prepared, workers):
    monkeypatch.setattr(pace, "_trial", lambda made: (lambda: 0.1, prepared))
    made, said = begin(batch={"size": 8}), []
    pace.suit_cpu(made, said.append, keep_threads=True)
    assert made.workers == workers and said == [
        f"workers: {workers}, because preparing a sample takes {pace._short(prepared)}, and its part of a step 100 ms"
    ]


def test_what_was_set_is_not_measured(begin, monkeypatch):
    monkeypatch.setattr(pace, "_trial", lambda made: pytest.fail("it was measured"))
    monkeypatch.setenv(pace.THREADS_VARIABLE, "1")
    made = begin(batch={"size": 8, "workers": 3})
    pace.suit_cpu(made, pytest.fail)
    assert made.workers == 3 and torch.get_num_threads() == 1


def test_a_run_that_goes_on_has_the_threads_it_began_with(begin):
    torch.set_num_threads(2)
    begin(steps=2).run()
    torch.set_num_threads(1)
    assert begin(steps=4).resume() and torch.get_num_threads() == 2


def test_an_estimate_measures_each_phase_and_what_is_held_out(begin):
    made = begin(steps=1000, schedule={"prompt_warmup": 400, "ramp": 100}, validation={"every": 250})
    lines = pace.estimate(made)
    assert [line.split(":")[0] for line in lines[:2]] == ["prompt warm-up", "then"]
    assert all("samples a second" in line and "a step of 8" in line for line in lines[:2])
    times = next(line for line in lines if line.startswith("time:"))
    assert "1000 steps take" in times and "measuring the held-out loss" in times
    there = len(made.source.train)
    assert f"see each of the {there} samples {1000 * 8 / there:.3g} times" in times
    assert any(line.startswith("memory: ") for line in lines)
    assert not list(made.folder.glob("*"))


def test_an_estimate_says_what_a_frozen_tower_takes(begin):
    lines = pace.estimate(begin(freeze={"vision_encoder": True}, augmentation={"brightness": 0.1}))
    assert "the frozen vision encoder takes" in lines[-1] and "features=true augmentation={} caches" in lines[-1]


def test_a_step_that_does_not_fit_says_what_helps(begin):
    made = begin()

    def too_large(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    made.wrapped.forward = too_large
    with pytest.raises(TrainingError, match=r"more memory than the GPU has.*2\.00 GiB") as raised:  # noqa: SIM117
        with pace.enough_memory(made.settings):
            pace.estimate(made)
    assert "activation_checkpointing=true" in str(raised.value)


def test_durations_and_sizes_in_words():
    found = [pace.duration(seconds) for seconds in (42.4, 89, 90, 5399, 12_000)]
    assert found == ["42 s", "89 s", "2 min", "1 h 30 min", "3 h 20 min"]
    assert [pace.gigabytes(size) for size in (2.5e6, 3.21e9)] == ["2.5 MB", "3.21 GB"]


@pytest.mark.parametrize(
    ("repeats", "workers", "size", "is_lost"),
    [(1, 3, 8, False), (2, 0, 8, False), (2, 1, 48, False), (2, 2, 8, False), (2, 3, 8, True), (3, 3, 8, False),
     (2, 2, 48, True)],
)  # fmt: skip
def test_samples_that_come_again_reach_the_process_that_kept_them(repeats, workers, size, is_lost):
    from types import SimpleNamespace

    from xvla_ros.training.data.batches import Share

    scenes = ({"robot": "agibot", "task": "touch"},)
    settings = SimpleNamespace(drawn=Drawn(scenes=scenes, repeats=repeats))
    said = pace.lost_repeats(SimpleNamespace(settings=settings, share=Share(size), workers=workers))
    assert bool(said) == is_lost
    share = Share(size)
    of_index = {index: step % workers if workers else 0 for step in range(1000) for index in share.indices(step, 0)}
    apart = APART * repeats + 1  # from a new sample to when it comes the second time
    if repeats > 1 and size == 8:
        lost = sum(of_index[index] != of_index[index + apart] for index in range(0, 1000 * repeats, repeats))
        assert (lost > 500) == is_lost
