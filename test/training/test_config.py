# SPDX-License-Identifier: Apache-2.0
"""Training files: what is read, what the command line changes, what is refused and how."""

from __future__ import annotations

import pytest

from xvla_ros.training.config import COMMAND_LINE, TrainingError, read_settings

MINIMAL = "datasets: [{paths: [demos/*]}]\n"


@pytest.fixture
def read(tmp_path):
    def made(text, *overrides):
        path = tmp_path / "train.yaml"
        path.write_text(text)
        return read_settings(path, overrides)

    return made


def problems(read, text, *overrides):
    with pytest.raises(TrainingError) as caught:
        read(text, *overrides)
    return {problem.key: problem for problem in caught.value.problems}


def test_a_file_needs_only_its_data(read):
    settings = read(MINIMAL)
    assert settings.optimizer.betas == (0.9, 0.99) and settings.optimizer.vlm_scale == 0.1
    assert settings.datasets[0].paths == ("demos/*",)


def test_every_value_can_be_set_on_the_command_line(read):
    settings = read(
        MINIMAL, "optimizer.learning_rate=3e-4", "datasets.0.weight=2", "model.network.image_size=[64, 64]",
        "steps=7", "freeze.vision_encoder=true", "output=runs/a", "initialise={}",
    )  # fmt: skip
    assert settings.optimizer.learning_rate == 3e-4 and settings.datasets[0].weight == 2.0
    assert settings.model.network["image_size"] == [64, 64]
    assert settings.steps == 7 and settings.freeze.vision_encoder and settings.output == "runs/a"


def test_numbers_may_be_written_with_an_exponent_alone(read):
    assert read(MINIMAL + "optimizer: {learning_rate: 1e-4}\n").optimizer.learning_rate == 1e-4


def test_everything_wrong_is_named_at_once_with_where_it_stands(read, tmp_path):
    found = problems(
        read, MINIMAL + "optimizer: {lerning_rate: 1e-4}\nsteps: many\n", "batch.size=-3", "schedule.decay=linear",
        "datasets.0.wait=1", "nonsense",
    )  # fmt: skip
    assert set(found) == {"optimizer.lerning_rate", "steps", "batch.size", "schedule.decay", "datasets.0.wait", ""}
    assert "did you mean 'learning_rate'" in found["optimizer.lerning_rate"].message
    assert found["steps"].file == str(tmp_path / "train.yaml") and found["steps"].value == "many"
    assert found["batch.size"].file == COMMAND_LINE and found["batch.size"].expected == "greater than or equal to 1"
    assert found["schedule.decay"].expected == "'cosine' or 'constant'"
    assert found[""].expected == "key.sub=value"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=lora", "method lora adapts a checkpoint"),
        ("initialise.my_arm=so101", "initialise copies weights of a checkpoint"),
        ("batch.accumulation=3", "64 does not divide by batch.accumulation 3"),
        ("schedule.prompt_warmup=20000", "leaves none of the 20000 steps"),
        ("features=true", "features needs a frozen vision encoder"),
        ("objective=vision", "objective vision trains a vision encoder on images of the simulator"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(read, override, words):
    assert words in problems(read, MINIMAL, override)[""].message


def test_a_missing_file_and_one_that_is_no_yaml_are_named(tmp_path, read):
    with pytest.raises(TrainingError, match=r"absent\.yaml.*no such file"):
        read_settings(tmp_path / "absent.yaml")
    with pytest.raises(TrainingError, match="cannot be read"):
        read("a: [1\n")
    with pytest.raises(TrainingError, match=r"either recordings \(datasets\) or generated \(drawn\)"):
        read("steps: 3\n")
