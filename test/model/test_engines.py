# SPDX-License-Identifier: Apache-2.0
"""Exported graphs in ONNX Runtime and OpenVINO: as exact as the network they were made of, or refused."""

from __future__ import annotations

import copy
import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from xvla_ros.commands import main
from xvla_ros.errors import CheckpointError, SetupError
from xvla_ros.model import checkpoint
from xvla_ros.model.checkpoint import build, read_files
from xvla_ros.model.network.xvla import LateNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.model.runtime import engines, parts
from xvla_ros.model.runtime.engines import BOUND, FORMATS, on_engine
from xvla_ros.model.runtime.graphs import WEIGHTS_FILE, export_checkpoint, export_graphs
from xvla_ros.types import Observation, Prefix

Look = Callable[..., Observation]
Another = Callable[[int], Policy]

VIEWS = {3}
WRITERS = all(find_spec(name) for name in ("onnx", "onnxscript"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.skipif(not (WRITERS and find_spec(name)), reason=f"no {name} or no onnx"))
        for name in FORMATS
    ],
)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def exported(engine: str, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the engine's graphs, to be read and never written."""
    folder = tmp_path_factory.mktemp("exported") / "there"
    export_checkpoint(saved, folder, FORMATS[engine], inputs=3)
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def signal_stack() -> bytes:
    """Return where this thread takes signals, as ``sigaltstack`` says it."""
    found = ctypes.create_string_buffer(64)
    assert ctypes.CDLL(None).sigaltstack(None, found) == 0
    return found.raw


def loaded(folder: Path) -> Policy:
    return checkpoint.load(folder, dtype="float32")


@pytest.fixture
def ready_made(engine: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are copied in the place of being written, which takes long."""

    def copy(network: object, folder: Path, kind: str, *_: object) -> None:
        shutil.copytree(exported / kind, folder, dirs_exist_ok=True)

    monkeypatch.setattr("xvla_ros.model.runtime.graphs._write", copy)


def damage(folder: Path, engine: str) -> None:
    """Change weights that the graphs read, not those of the checkpoint, nor the sizes that lie among them."""
    file = folder / FORMATS[engine] / (WEIGHTS_FILE if engine == "onnxruntime" else "step_3.bin")
    content = np.fromfile(file, np.float32)
    weights = (np.abs(content) > 1e-3) & (np.abs(content) < 10)
    file.write_bytes(np.where(weights, 0.5 * content, content).tobytes())


def test_who_loads_an_engine_can_be_asked_to_end_as_before(engine: str, exported: Path) -> None:
    """A thread that takes signals on memory of an engine, which frees it, is killed by the next one."""
    before = signal_stack()
    policy = on_engine(loaded(exported), engine, VIEWS)
    assert signal_stack() == before
    del policy
    assert signal_stack() == before


def test_engine_answers_as_the_network_does(engine: str, exported: Path, look: Look) -> None:
    policy = loaded(exported)
    pair, arm = (policy.robots[name].embodiment for name in ("pair", "arm"))
    found = on_engine(policy, engine, VIEWS)
    assert found.runner.description.startswith(f"on {engines.NAMES[engine]} ")
    for row in range(6):
        slots = pair.slots[: 1 + row % 3]  # also with cameras missing
        asked = [look(pair, stamp=row, seed=row, slots=slots, instruction=f"lift cube {row}"), look(arm, seed=row)]
        for steps in (1, 3):
            own, theirs = (each.predict(asked, steps=steps, seed=row) for each in (policy, found))
            for one, other in zip(own, theirs, strict=True):
                assert one.robot == other.robot
                scale = policy.robots[one.robot].statistics.action.stats["std"]
                assert np.abs((one.actions - other.actions) / scale).max() < 2e-5


def test_engine_answers_without_the_network(engine: str, exported: Path, look: Look) -> None:
    policy = build(read_files(exported), dtype="float32", late=True)
    found = on_engine(policy, engine, VIEWS)
    answered = found.predict([look()], seed=1)[0].actions
    assert isinstance(policy.outline, LateNetwork) and not policy.outline.is_read
    own = loaded(exported)
    np.testing.assert_allclose(answered, own.predict([look()], seed=1)[0].actions, atol=1e-4)
    held = Prefix(np.zeros((8, 12), np.float32), np.ones(8, np.float32), 2.0)
    guided = [each.predict([look()], seed=1, prefix=[held])[0].actions for each in (found, own)]
    assert policy.outline.is_read  # gradients are torch's
    np.testing.assert_allclose(*guided, atol=1e-3)


def test_network_is_not_read_from_files_that_changed_since_it_was_loaded(
    engine: str, copied: Path, look: Look, another: Another, tmp_path: Path
) -> None:
    found = on_engine(build(read_files(copied), dtype="float32", late=True), engine, VIEWS)
    before = found.predict([look()], seed=1)[0].actions
    weights = copied / "model.safetensors"
    checkpoint.save(another(4), tmp_path / "another")
    shutil.copy(tmp_path / "another" / weights.name, weights)
    held = Prefix(np.zeros((8, 12), np.float32), np.ones(8, np.float32), 2.0)
    with pytest.raises(CheckpointError, match=r"model.safetensors: has changed since .*: load it again"):
        found.predict([look()], seed=1, prefix=[held])
    np.testing.assert_array_equal(found.predict([look()], seed=1)[0].actions, before)


def test_network_is_read_later_whatever_else_is_written_beside_its_weights(
    engine: str, copied: Path, look: Look
) -> None:
    found = on_engine(build(read_files(copied), dtype="float32", late=True), engine, VIEWS)
    (copied / "my_evaluation.json").write_text("{}")
    held = Prefix(np.zeros((8, 12), np.float32), np.ones(8, np.float32), 2.0)
    guided = [each.predict([look()], seed=1, prefix=[held])[0].actions for each in (found, loaded(copied))]
    np.testing.assert_allclose(*guided, atol=1e-3)


def test_view_that_did_not_change_is_not_encoded_again(
    engine: str, exported: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads((exported / FORMATS[engine] / engines.REPORT).read_text(encoding="utf-8"))

    def opened() -> tuple[Policy, list[int]]:
        found, encoded = on_engine(build(read_files(exported), dtype="float32", late=True), engine, VIEWS), [0]
        running = found.runner.running
        assert isinstance(running, engines.ExportedNetwork) and running.reuses == report["reuse"]
        running.reuses = True  # also on a processor where one picture alone is not bit-identical
        whole = running.features

        def counted(images: Tensor) -> Tensor:
            encoded[0] += len(images)
            return whole(images)

        monkeypatch.setattr(running, "features", counted)
        running.forget()
        return found, encoded

    before, after = look(seed=1), look(seed=2, stamp=5)
    slots = list(before.images)
    changed = replace(after, images={**before.images, slots[0]: after.images[slots[0]]})
    reusing, encoded = opened()
    reusing.predict([before], seed=3)
    assert encoded == [len(slots)]
    answered = reusing.predict([changed], seed=3)[0].actions
    assert encoded == [len(slots) + 1]
    fresh, encoded = opened()
    expected = fresh.predict([changed], seed=3)[0].actions
    np.testing.assert_allclose(answered, expected, rtol=0, atol=0 if report["reuse"] else 1e-4)
    assert encoded == [len(slots)]
    assert not np.array_equal(answered, fresh.predict([after], seed=3)[0].actions)


def test_views_are_all_encoded_where_one_alone_is_not_bit_identical(engine: str, copied: Path, look: Look) -> None:
    report = copied / FORMATS[engine] / engines.REPORT
    report.write_text(report.read_text(encoding="utf-8").replace('"reuse": true', '"reuse": false'), encoding="utf-8")
    policy = loaded(copied)
    found = on_engine(policy, engine, VIEWS)
    running = found.runner.running
    assert isinstance(running, engines.ExportedNetwork) and not running.reuses
    answered = [found.predict([look()], seed=3)[0].actions for _ in range(2)]
    assert not running._seen and np.array_equal(*answered)
    np.testing.assert_allclose(answered[0], policy.predict([look()], seed=3)[0].actions, atol=1e-4)


def test_graphs_of_an_earlier_release_are_refused(engine: str, copied: Path) -> None:
    report = copied / FORMATS[engine] / engines.REPORT
    before = {**json.loads(report.read_text(encoding="utf-8")), "schema_version": engines.SCHEMA_VERSION - 1}
    report.write_text(json.dumps({name: value for name, value in before.items() if name != "reuse"}), encoding="utf-8")
    with pytest.raises(SetupError, match=r"has schema_version 2, expected 3: export the checkpoint again"):
        on_engine(loaded(copied), engine, VIEWS)


def test_engine_answers_without_transformers(engine: str, exported: Path) -> None:
    script = (
        "import sys\n"
        "from xvla_ros.model.checkpoint import build, read_files\n"
        "from xvla_ros.model.runtime.engines import on_engine\n"
        "policy = build(read_files(sys.argv[1]), dtype='float32', late=True)\n"
        "policy = on_engine(policy, sys.argv[2], {3})\n"
        "policy.predict([policy.blank(policy.robots['pair'].embodiment)], seed=0)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, exported, engine], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['torch']"


def test_weights_are_known_again_where_another_file_changed(engine: str, copied: Path) -> None:
    config = copied / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    policy = build(read_files(copied), dtype="float32", late=True)
    on_engine(policy, engine, VIEWS)
    assert isinstance(policy.outline, LateNetwork) and policy.outline.is_read


def test_graphs_without_reference_are_refused(engine: str, copied: Path) -> None:
    (copied / FORMATS[engine] / engines.REFERENCE).unlink()
    with pytest.raises(SetupError, match=r"reference\.safetensors cannot be compared with an engine .* export"):
        on_engine(loaded(copied), engine, VIEWS)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_engine_agrees_with_what_was_committed(engine: str, exported: Path, look: Look, guidance: float) -> None:
    policy = loaded(exported)
    found = on_engine(policy, engine, VIEWS)
    committed = np.linspace(-3.0, 3.0, 12, dtype=np.float32) + np.zeros((8, 1), np.float32)
    prefix = Prefix(committed, np.array([1, 1, 0.5, 0.2, 0, 0, 0, 0], np.float32), guidance)
    own, theirs, free = (
        each.predict([look()], seed=1, prefix=held)[0].actions
        for each, held in ((policy, [prefix]), (found, [prefix]), (found, [None]))
    )
    assert np.abs(own - theirs).max() < 1e-3 and np.abs(own - free).max() > 0.1


def test_report_says_what_was_exported_and_how_exact_it_is(engine: str, exported: Path) -> None:
    report = json.loads((exported / FORMATS[engine] / "report.json").read_text(encoding="utf-8"))
    assert report["format"] == FORMATS[engine] and report["views"] == [3] and engine in report["made_with"]
    assert report["digest"] == engines.digest(loaded(exported).network)
    assert report["shapes"] == {"image": [3, 96, 96], "words": 24, "waypoints": 8, "width": 20, "state": 20}
    numerics = report["numerics"]
    assert numerics["inputs"] == 3 and numerics["steps"] == 3 and numerics["bound"] == BOUND
    assert 0 < numerics["rms"] <= numerics["largest"] < 2e-5


@pytest.mark.skipif(not (WRITERS and find_spec("onnxruntime")), reason="no onnx or no onnxruntime")
def test_weights_stand_once_whatever_the_number_of_views(policy: Policy, tmp_path: Path) -> None:
    report = export_graphs(policy.network, tmp_path, "onnxruntime", {1, 3}, inputs=2, steps=2)
    assert report["views"] == [1, 3] and report["numerics"]["largest"] < 2e-5
    files = {each.name: each.stat().st_size for each in (tmp_path / "onnx").iterdir()}
    graphs = {"look.onnx", "mix_1.onnx", "mix_3.onnx", "step_1.onnx", "step_3.onnx"}
    assert files.keys() == graphs | {WEIGHTS_FILE, "report.json", engines.REFERENCE}
    weights = sum(each.nbytes for each in policy.network.parameters())
    assert files[WEIGHTS_FILE] < 1.2 * weights


@pytest.mark.skipif(bool(find_spec("tensorrt")), reason="TensorRT is there")
def test_tensorrt_is_refused_by_name_where_it_is_not(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "there"
    assert main(["export", "tensorrt", str(saved), "--output", str(output)]) == 1
    assert "pip install tensorrt 'xvla_ros[engines]'" in capsys.readouterr().err
    assert not output.exists()
    with pytest.raises(SetupError, match="has no folder tensorrt: write one with xvla export tensorrt"):
        on_engine(loaded(saved), "tensorrt", VIEWS)


def test_graphs_of_other_weights_are_refused(engine: str, copied: Path, another: Another) -> None:
    checkpoint.save(another(4), copied)
    with pytest.raises(SetupError, match=r"were exported from other weights \([0-9a-f]{12}\).*export .* again"):
        on_engine(loaded(copied), engine, VIEWS)


def test_graphs_of_another_text_length_are_refused(engine: str, copied: Path) -> None:
    file = copied / "policy_preprocessor.json"
    steps = json.loads(file.read_text(encoding="utf-8"))
    for step in steps["steps"]:
        if "max_length" in step.get("config", {}):
            step["config"]["max_length"] = 20
    file.write_text(json.dumps(steps), encoding="utf-8")
    with pytest.raises(SetupError, match="are for words 24, and the checkpoint has 20: export the checkpoint again"):
        on_engine(loaded(copied), engine, VIEWS)
    said: list[str] = []
    policy = on_engine(loaded(copied), "auto", VIEWS, log=said.append)
    assert f"{engines.NAMES[engine]} is not used" in said[0] and "words 24" in said[0]
    policy.predict([policy.blank(policy.robots["pair"].embodiment)], steps=1)


def test_engine_that_answers_otherwise_is_refused(engine: str, copied: Path) -> None:
    damage(copied, engine)
    said: list[str] = []
    with pytest.raises(SetupError, match="from the network itself; at most 1e-04 is allowed"):
        on_engine(loaded(copied), engine, VIEWS)
    assert on_engine(loaded(copied), "auto", VIEWS, log=said.append).runner.description.startswith(
        ("eager", "on oneDNN")
    )
    assert f"{engines.NAMES[engine]} is not used" in said[0] and "from the network itself" in said[0]


def test_robot_without_graphs_is_refused(engine: str, exported: Path) -> None:
    with pytest.raises(SetupError, match=r"are for 3 views, and a robot has 2: export .* again with --robot"):
        on_engine(loaded(exported), engine, {2, 3})


def test_graph_that_is_missing_is_named(engine: str, copied: Path) -> None:
    file = copied / FORMATS[engine] / f"mix_3{engines.ENDINGS[FORMATS[engine]]}"
    file.unlink()
    with pytest.raises(SetupError, match=r"mix_3.*is missing"):
        on_engine(loaded(copied), engine, VIEWS)


def test_graphs_compute_in_float32_alone(engine: str, exported: Path) -> None:
    policy = checkpoint.load(exported, dtype="bfloat16")
    with pytest.raises(SetupError, match="run on cpu in float32, and the policy on cpu in bfloat16"):
        on_engine(policy, engine, VIEWS)
    said: list[str] = []
    on_engine(policy, "auto", VIEWS, log=said.append)
    assert "exported graphs run on cpu in float32" in said[0]


def test_fastest_is_tried_once_and_kept(engine: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[set[str]] = []

    def trial(network: object, opened: dict[str, object], steps: int) -> dict[str, float]:
        tried.append({*opened})
        return {"torch": 50.0, engine: 20.0}

    monkeypatch.setattr(engines, "_trial", trial)
    said: list[str] = []
    name = engines.NAMES[engine]
    for _ in range(2):
        found = on_engine(loaded(exported), "auto", VIEWS, log=said.append)
        assert found.runner.description.startswith(f"on {name} ")
    assert tried == [{engine}]
    assert f"(processor ms a chunk by trial: {name} 20, torch 50)" in said[0] and "measured before" in said[1]


def test_engine_must_be_well_faster(engine: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_trial", lambda *_: {"torch": 50.0, engine: 47.0})
    said: list[str] = []
    for _ in range(2):
        found = on_engine(loaded(exported), "auto", VIEWS, log=said.append)
        assert not found.runner.description.startswith(f"on {engines.NAMES[engine]}")
    assert "torch is the fastest here" in said[0]


def test_trial_measures_torch_and_the_engine(engine: str, exported: Path) -> None:
    network = loaded(exported).network
    opened = {engine: engines.ExportedNetwork(network, exported / FORMATS[engine], engine, [3])}
    found = engines._trial(network, opened, 2)
    assert set(found) == {"torch", engine} and all(0 < value < float("inf") for value in found.values())


@pytest.mark.usefixtures("ready_made")
def test_second_engine_goes_into_the_same_folder(engine: str, copied: Path, another: Another, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in copied.glob("*") if file.is_file()}
    export_checkpoint(copied, copied, FORMATS[engine], inputs=1)
    assert before == {file: file.read_bytes() for file in copied.glob("*") if file.is_file()}
    assert not [each for each in copied.iterdir() if each.name.startswith(".")]
    other = tmp_path / "other"
    checkpoint.save(another(5), other)
    with pytest.raises(SetupError, match=r"copied contains another checkpoint"):
        export_checkpoint(other, copied, FORMATS[engine], inputs=1)


@pytest.mark.parametrize("report", [None, "[]", '{"schema_version": 1}', '{"schema_version": 3, "format": "lerobot"}'])
def test_folder_that_no_export_wrote_stays(engine: str, saved: Path, tmp_path: Path, report: str | None) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "mc"))
    theirs = folder / FORMATS[engine]
    theirs.mkdir()
    (theirs / "model.onnx").write_text("theirs")
    if report is not None:
        (theirs / "report.json").write_text(report)
    there = sorted(folder.rglob("*"))
    with pytest.raises(SetupError, match=rf"the graphs go into {theirs}, .*: remove it, or name another"):
        export_checkpoint(folder, folder, FORMATS[engine], inputs=1)
    assert sorted(folder.rglob("*")) == there


@pytest.mark.usefixtures("ready_made")
def test_inexact_export_leaves_nothing(
    engine: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xvla_ros.model.runtime.graphs.BOUND", 0.0)
    with pytest.raises(SetupError, match=r"from the network .* nothing was written"):
        export_checkpoint(saved, tmp_path / "out", FORMATS[engine], inputs=1)
    assert [each.name for each in tmp_path.iterdir()] == []


@pytest.mark.parametrize("size", [96, 80, 112])
def test_features_are_those_of_the_network(policy: Policy, size: int) -> None:
    """At sizes that windows fit into, and that they do not."""
    network = copy.deepcopy(policy.network).requires_grad_(False)
    network.config = replace(network.config, image_size=(size, size + 16))
    images = torch.randn(3, 3, size, size + 16, generator=torch.Generator().manual_seed(0))
    found, expected = parts.Look(network)(images), network.vlm.image_features(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 4])
def test_step_is_that_of_the_network(policy: Policy, depth: int) -> None:
    network = copy.deepcopy(policy.network).requires_grad_(False)
    network.transformer.blocks = network.transformer.blocks[:depth]
    trial = engines.RandomInputs.drawn(network, 3, 19, seed=0)
    context, t = trial.encode(network), torch.tensor([0.3])
    given = (trial.noise, trial.state, t, trial.domain_id)
    found = parts.Step(network)(*given, context.tokens, context.first_qkv)
    torch.testing.assert_close(found, network.transformer(trial.noise, trial.state, t, context), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_checkpoint_without_graphs_runs_on_torch(name: str, saved: Path) -> None:
    said: list[str] = []
    found = on_engine(loaded(saved), "auto", VIEWS, log=said.append)
    assert said == [f"the policy runs {found.runner.description}"]
    with pytest.raises(SetupError, match=f"has no folder {FORMATS[name]}: write one with xvla export {FORMATS[name]} "):
        on_engine(loaded(saved), name, VIEWS)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_package_is_named(name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda package: None)
    with pytest.raises(SetupError, match=rf"lacks the packages {name}, onnx.*pip install .*'xvla_ros\[engines\]'"):
        export_checkpoint(saved, tmp_path / "out", FORMATS[name])


def test_digest_tells_one_weight_from_another(policy: Policy, another: Another) -> None:
    network = another(3).network
    before = engines.digest(network)
    assert before == engines.digest(policy.network)
    with torch.no_grad():
        network.transformer.pos_emb[0, 0, 0] += 1e-3
    assert engines.digest(network) != before


@pytest.mark.usefixtures("ready_made")
def test_command_says_how_exact_the_export_is(
    engine: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["export", FORMATS[engine], str(saved), "--output", str(output), "--inputs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: a checkpoint, with graphs for 3 views in {FORMATS[engine]}\n")
    assert "over 2 inputs of 3 steps" in said and "(allowed 1e-04)" in said
    assert on_engine(loaded(output), engine, VIEWS).runner.description.startswith(f"on {engines.NAMES[engine]}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onnx", "there", "--fps", "30", "--skip-bad"], "--fps, --skip-bad: export onnx has no such option"),
        (["lerobot", "there", "--inputs", "5"], "--inputs: export lerobot has no such option"),
        (["openvino", "there", "too"], "2 checkpoints are given, expected one: there, too"),
    ],
)
def test_command_refuses_what_the_format_has_not(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"KEY": 1}', '{"KEY": {"torch": "fast"}}'])
def test_measurements_survive_a_damaged_file(content: str) -> None:
    file = engines.Measurements("weights").file
    file.parent.mkdir(parents=True)
    file.write_text(content.replace("KEY", engines.Measurements("weights").key), encoding="utf-8")
    found = engines.Measurements("weights")
    assert found.fastest([]) is None
    found.keep({"torch": 5.0, "openvino": 2.0})
    again = engines.Measurements("weights")
    assert again.fastest(["openvino"]) == "openvino" and again.fastest([]) == "torch"
    assert again.fastest(["onnxruntime", "openvino"]) is None
    assert again.said() == "processor ms a chunk by trial, measured before: OpenVINO 2, torch 5"
