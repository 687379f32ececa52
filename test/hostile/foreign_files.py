# SPDX-License-Identifier: Apache-2.0
"""Every reader of foreign files and messages with a whole example, and files of at most 10 MB made to hurt it.

``python test/hostile/foreign_files.py FOLDER [READER …]`` walks readers and attacks, and prints a line of JSON for
each: reader, attack, outcome, seconds of processor time, and MB that it took above what the process had before.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from xvla_ros.errors import BagError, CheckpointError, MessageError, ProfileError
from xvla_ros.limits import cause, is_interrupt
from xvla_ros.model.checkpoint.dialects import read_config
from xvla_ros.model.checkpoint.inspection import find_checkpoint
from xvla_ros.model.checkpoint.pipelines import read_pipelines
from xvla_ros.model.checkpoint.record import read_record
from xvla_ros.model.checkpoint.tensors import place_tensors, read_header, stored_tensors
from xvla_ros.model.inputs.words import load_tokenizer
from xvla_ros.model.network.config import XvlaConfig
from xvla_ros.observation.images import rgb_of_compressed, rgb_of_message
from xvla_ros.recordings import cdr
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.bags import Bag
from xvla_ros.recordings.lerobot_files import LeRobotFiles, Video
from xvla_ros.recordings.lerobot_mapping import read_mapping
from xvla_ros.recordings.marks import read_mark
from xvla_ros.recordings.recording import SamplesError
from xvla_ros.resources import config_dir, policy_dir
from xvla_ros.robots.profile import load_profile, load_profiles
from xvla_ros.robots.profile.schema import Camera
from xvla_ros.robots.urdf import read_urdf
from xvla_ros.training.config import TrainingError, read_settings

MB = 1 << 20
TEN = 10_000_000
GUARD_S = 600  # for one attack; ends what hangs, on a machine however busy
ADDRESSES = 4 << 30  # bytes that an attack may reserve at most
ROBOT = "so101_bimanual"


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the file that is attacked, within the folder of its example.
        error: by which it refuses.
        make: writes a whole example into a folder.
        read: reads it.
        form: ``json``, ``yaml``, ``lines`` or ``bytes``, for what changes it.
    """

    name: str
    error: type[Exception]
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    form: str = "bytes"


def _policy(folder: Path) -> None:
    source = policy_dir()
    assert source is not None
    for path in source.iterdir():
        if path.name != "model.safetensors":
            shutil.copyfile(path, folder / path.name)


def _original(folder: Path) -> None:
    _policy(folder)
    told = json.loads((folder / "config.json").read_text())
    keys = ("florence_config", "hidden_size", "depth", "num_heads", "num_domains", "len_soft_prompts", "dim_time",
            "max_len_seq", "mlp_ratio", "use_hetero_proj", "action_mode", "use_proprio", "max_action_dim")  # fmt: skip
    own = {"num_actions": 30, "model_type": "xvla", "real_action_dim": 12, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps({**{key: told[key] for key in keys if key in told}, **own}))


def _index(folder: Path) -> None:
    name = "policy_preprocessor_step_7_normalizer_processor.safetensors"
    _policy(folder)
    told = {"metadata": {}, "weight_map": {"observation.state.mean": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))


def _adapter(folder: Path) -> None:
    (folder / "base").mkdir()
    _policy(folder / "base")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base", "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(told))


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _copy(name: str, source: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copyfile(config_dir() / source, folder / name)


def messages() -> dict[str, bytes]:
    """Return a whole message of each type that a node subscribes to or a bag is read for, by its type."""
    store = cdr.typestore()
    make, header = cdr._make, cdr._header(3)
    point = make("geometry_msgs/msg/Point", 0.1, 0.2, 0.3)
    pose = make("geometry_msgs/msg/Pose", point, make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0))
    level = make("diagnostic_msgs/msg/KeyValue", "checkpoint", "policy")
    status = make("diagnostic_msgs/msg/DiagnosticStatus", 0, "xvla", "well", "arm", [level])
    picture = np.full((16, 16, 3), 90, np.uint8)
    found = {
        cdr.JOINT_STATE: cdr.joint_state(5, ["a", "b"], [0.1, 0.2], [0.0, 0.0]),
        cdr.JOINT_TRAJECTORY: cdr.joint_trajectory(5, ["a", "b"], [1, 2], [[0.1, 0.2], [0.2, 0.3]]),
        cdr.FLOAT_ARRAY: cdr.float_array([1.0, 2.0]),
        cdr.STRING: cdr.string("pick up the cube"),
        cdr.IMAGE: cdr.image(5, picture),
        cdr.COMPRESSED_IMAGE: cdr.compressed_image(5, picture),
        cdr.POSE: cdr._serialized(cdr.POSE, header, pose),
        "diagnostic_msgs/msg/DiagnosticArray": cdr._serialized("diagnostic_msgs/msg/DiagnosticArray", header, [status]),
        "std_msgs/msg/Bool": cdr._serialized("std_msgs/msg/Bool", True),
        "std_msgs/msg/Header": bytes(store.serialize_cdr(header, "std_msgs/msg/Header")),
        "rosgraph_msgs/msg/Clock": cdr._serialized(
            "rosgraph_msgs/msg/Clock", make("builtin_interfaces/msg/Time", 1, 2)
        ),
    }
    for kind in ("ActionChunk", "PolicyStatus", "EpisodeOutcome"):
        name = f"xvla_ros/msg/{kind}"
        if name in store.types:
            found[name] = bytes(store.serialize_cdr(_filled(name), name))
    return found


def _filled(kind: str) -> Any:
    """Return a message of a type with something in each field."""
    values = []
    for _, (node, what) in cdr.typestore().get_msgdef(kind).fields:
        number = int(node)
        if number == 1:
            name = what[0]
            values.append({"string": "x", "bool": True}.get(name, 1 if "int" in name or name == "octet" else 1.0))
        elif number == 2:
            values.append(_filled(what))
        else:
            (inner, element), length = what
            if int(inner) == 1 and element[0] not in ("string", "wstring"):
                values.append(np.ones(length or 2, element[0]))
            else:
                item = "x" if int(inner) == 1 else None
                values.append([item if item is not None else _filled(element) for _ in range(length or 2)])
    return cdr.typestore().types[kind](*values)


def _message_reader(kind: str, whole: bytes) -> Reader:
    camera = Camera(topic="/camera", transport="compressed" if kind == cdr.COMPRESSED_IMAGE else "raw")
    profile = load_profile(ROBOT)[ROBOT]

    def read(folder: Path) -> object:
        data = (folder / "message").read_bytes()
        message = cdr.read(data, kind)
        if kind in (cdr.IMAGE, cdr.COMPRESSED_IMAGE):
            rgb_of_message(message, camera)
        elif kind == cdr.STRING:
            read_mark(message.data)
        elif kind in (cdr.JOINT_TRAJECTORY, cdr.FLOAT_ARRAY, cdr.POSE):
            cdr.DECODERS[kind](message, ["a", "b"], profile.policy.domain_id)
        if kind not in (cdr.STRING, cdr.FLOAT_ARRAY, "std_msgs/msg/Bool"):
            cdr.peek_stamp(data)
        return message

    def write(folder: Path) -> None:
        if kind == cdr.STRING:
            (folder / "message").write_bytes(cdr.string('{"event": "start", "robot": "arm"}'))
        else:
            (folder / "message").write_bytes(whole)

    return Reader("message", MessageError, write, read)


def _bag(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        compression = {"zstd.mcap": "zstd", "lz4.mcap": "lz4"}.get(name, "none")
        with BagWriter(folder / name, "", compression=compression) as bag:  # type: ignore[arg-type]
            for stamp in range(10, 400, 10):
                bag.write("/joint_states", cdr.JOINT_STATE, stamp, cdr.joint_state(stamp, ["a"], [0.5]))

    return make


def _sqlite(folder: Path, view: bool = False) -> None:
    (folder / "a.db3").unlink(missing_ok=True)
    file = sqlite3.connect(folder / "a.db3")
    file.executescript(
        "create table topics(id integer primary key, name text, type text, serialization_format text);"
        "insert into topics values(1, '/joint_states', 'sensor_msgs/msg/JointState', 'cdr');"
    )
    if view:
        file.executescript(
            "create view messages as with recursive r(n) as (select 1 union all select n + 1 from r) "
            "select n as id, 1 as topic_id, n as timestamp, zeroblob(1000000) as data from r;"
        )
    else:
        file.execute("create table messages(id integer primary key, topic_id integer, timestamp integer, data blob)")
        for stamp in range(20):
            data = cdr.joint_state(stamp, ["a"], [0.5])
            file.execute("insert into messages(topic_id, timestamp, data) values(1, ?, ?)", (stamp, data))
    file.commit()
    file.close()


def _folder_bag(folder: Path) -> None:
    _sqlite(folder)
    told = {"version": 9, "storage_identifier": "sqlite3", "relative_file_paths": ["a.db3"], "compression_mode": ""}
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": told}))


INFO = {
    "codebase_version": "v2.1", "fps": 10, "chunks_size": 1000,
    "features": {
        "action": {"dtype": "float32", "shape": [1], "names": ["a"]}, "v": {"dtype": "video", "shape": [3, 4, 4]},
    },
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/{video_key}/{episode_index}.mp4",
}  # fmt: skip


def _data_set(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "meta").mkdir(exist_ok=True)
    (folder / "data" / "chunk-000").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(INFO))
    (folder / "meta" / "episodes.jsonl").write_text('{"episode_index": 0, "length": 3, "tasks": ["x"]}\n')
    (folder / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "x"}\n')
    rows = {"frame_index": [0, 1, 2], "episode_index": [0] * 3, "timestamp": [0.0, 0.1, 0.2], "task_index": [0] * 3}
    table = pa.table({**rows, "action": [[1.0], [2.0], [3.0]]})
    pq.write_table(table, folder / "data" / "chunk-000" / "episode_000000.parquet")


def _read_data_set(folder: Path) -> object:
    files = LeRobotFiles(folder)
    return [(files.rows(each, ["action"]), files.words(each, "task"), files.names("action")) for each in files.episodes]


def _video(folder: Path) -> None:
    import av

    with av.open(str(folder / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _watch(folder: Path) -> object:
    video = Video(folder / "v.mp4", 10.0)
    try:
        return video.at(0.0)
    finally:
        video.close()


def _paraphrases(folder: Path) -> object:
    from xvla_ros.training.data.datasets import read_paraphrases  # brings torch along

    return read_paraphrases(folder / "p.yaml")


def png(width: int, height: int, rows: int | None = None) -> bytes:
    """Return a grey PNG that says it has this size, with as many rows as it says, or others."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    squeezed, row = zlib.compressobj(9), bytes(width + 1)
    lines = b"".join(squeezed.compress(row) for _ in range(height if rows is None else rows)) + squeezed.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", lines) + part(b"IEND", b"")


def readers() -> dict[str, Reader]:
    """Return every reader of foreign data by name."""
    config = XvlaConfig(num_image_views=3)
    state = "policy_preprocessor_step_7_normalizer_processor.safetensors"
    mapping = "cameras: {front: observation.images.top}\nunits: policy\n"

    picture = messages()[cdr.COMPRESSED_IMAGE]

    def profile(folder: Path) -> object:
        return load_profiles([folder / "robot.yaml"])

    found = {
        "config": Reader("config.json", CheckpointError, _policy, lambda d: read_config(d / "config.json"), "json"),
        "config of the original": Reader(
            "config.json", CheckpointError, _original, lambda d: read_config(d / "config.json"), "json"
        ),
        "record": Reader("xvla_ros.json", CheckpointError, _policy, read_record, "json"),
        "preprocessor": Reader(
            "policy_preprocessor.json", CheckpointError, _policy, lambda d: read_pipelines(d, config), "json"
        ),
        "postprocessor": Reader(
            "policy_postprocessor.json", CheckpointError, _policy, lambda d: read_pipelines(d, config), "json"
        ),
        "tokenizer": Reader(
            "tokenizer.json", CheckpointError, _policy, lambda d: load_tokenizer(d, [], 16).encode(["a" * 60 + "!"]),
            "json",
        ),
        "safetensors": Reader(state, CheckpointError, _policy, lambda d: place_tensors(read_header(d / state))),
        "statistics": Reader(state, CheckpointError, _policy, lambda d: read_pipelines(d, config)),
        "index": Reader("model.safetensors.index.json", CheckpointError, _index, stored_tensors, "json"),
        "adapter": Reader("adapter_config.json", CheckpointError, _adapter, find_checkpoint, "json"),
        "profile": Reader("robot.yaml", ProfileError, _copy("robot.yaml", "so101.yaml"), profile, "yaml"),
        "training": Reader(
            "t.yaml", TrainingError, _copy("t.yaml", "training/adapt_prompt.yaml"),
            lambda d: read_settings(d / "t.yaml"), "yaml",
        ),
        "mapping": Reader(
            "m.yaml", SamplesError, _text("m.yaml", mapping), lambda d: read_mapping(d / "m.yaml"), "yaml"
        ),
        "paraphrases": Reader(
            "p.yaml", SamplesError, _text("p.yaml", "take it: [grasp it]\n"), _paraphrases, "yaml"
        ),
        "urdf": Reader("r.urdf", ProfileError, _copy("r.urdf", "urdf/so101.urdf"), lambda d: read_urdf(d / "r.urdf")),
        "mcap": Reader("a.mcap", BagError, _bag("a.mcap"), lambda d: Bag(d / "a.mcap").survey()),
        "mcap with zstd": Reader("zstd.mcap", BagError, _bag("zstd.mcap"), lambda d: Bag(d / "zstd.mcap").survey()),
        "mcap with lz4": Reader("lz4.mcap", BagError, _bag("lz4.mcap"), lambda d: Bag(d / "lz4.mcap").survey()),
        "sqlite": Reader("a.db3", BagError, _sqlite, lambda d: Bag(d / "a.db3").survey()),
        "bag metadata": Reader("metadata.yaml", BagError, _folder_bag, lambda d: Bag(d).survey(), "yaml"),
        "info": Reader("meta/info.json", SamplesError, _data_set, _read_data_set, "json"),
        "episodes": Reader("meta/episodes.jsonl", SamplesError, _data_set, _read_data_set, "lines"),
        "tasks": Reader("meta/tasks.jsonl", SamplesError, _data_set, _read_data_set, "lines"),
        "parquet": Reader("data/chunk-000/episode_000000.parquet", SamplesError, _data_set, _read_data_set),
        "video": Reader("v.mp4", SamplesError, _video, _watch),
        "png": Reader(
            "p.png", MessageError, lambda d: (d / "p.png").write_bytes(png(8, 8)),
            lambda d: rgb_of_compressed((d / "p.png").read_bytes()),
        ),
        "jpeg": Reader(
            "p.jpg", MessageError,
            lambda d: (d / "p.jpg").write_bytes(bytes(cdr.read(picture, cdr.COMPRESSED_IMAGE).data)),
            lambda d: rgb_of_compressed((d / "p.jpg").read_bytes()),
        ),
    }  # fmt: skip
    return found | {kind: _message_reader(kind, whole) for kind, whole in messages().items()}


def _yaml_bomb(tail: str) -> bytes:
    lines = ["/**:", "  ros__parameters:", "    r:", "      like: so101", "      a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"      a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return "\n".join([*lines, tail]).encode()


def _robots(count: int, chain: bool) -> bytes:
    robots = [f"    r{n}: {{like: {f'r{n - 1}' if chain and n else 'so101'}, namespace: /r{n}}}" for n in range(count)]
    return "\n".join(["/**:", "  ros__parameters:", *robots]).encode()


def _squeezed(path: Path, compression: str) -> bytes:
    """Return an mcap of a few kB whose chunk decompresses to half a gigabyte of empty records."""
    from mcap.writer import CompressionType, Writer

    stream = io.BytesIO()
    kind = CompressionType.ZSTD if compression == "zstd" else CompressionType.LZ4
    writer = Writer(stream, chunk_size=1 << 40, compression=kind, enable_crcs=False)
    writer.start()
    schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
    channel = writer.register_channel("/a", "cdr", schema)
    writer.add_message(channel, 1, bytes(500 * MB if compression == "zstd" else 300 * MB), 1)
    writer.finish()
    return stream.getvalue()


def _padded_chunks(count: int, size: int) -> bytes:
    """Return an mcap of 10 MB with so many chunks of so many zeros each, and a record that nobody knows."""
    whole = io.BytesIO()
    from mcap.writer import CompressionType, Writer

    writer = Writer(whole, chunk_size=1, compression=CompressionType.ZSTD, use_chunking=True)
    writer.start()
    schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
    writer.add_message(writer.register_channel("/a", "cdr", schema), 1, bytes(size), 1)
    writer.finish()
    parts, data, at = [], whole.getvalue(), 8
    while at < len(data) - 8:
        opcode, length = struct.unpack_from("<BQ", data, at)
        parts.append((opcode, data[at : at + 9 + length]))
        at += 9 + length
    chunk = next(part for opcode, part in parts if opcode == 6)
    head = b"".join(part for opcode, part in parts if opcode == 1)
    known = b"".join(part for opcode, part in parts if opcode in (3, 4))
    end = struct.pack("<BQI", 15, 4, 0) + struct.pack("<BQQQI", 2, 20, 0, 0, 0)
    rest = head + known + count * chunk
    pad = TEN - len(rest) - len(end) - 25
    return data[:8] + rest + struct.pack("<BQ", 0x80, pad) + bytes(pad) + end + data[:8]


def _nested_json(data: dict[str, Any], way: str, value: Any) -> bytes:
    *parts, last = way.split(".")
    place = data
    for part in parts:
        place = place[part]
    place[last] = value
    return json.dumps(data).encode()


def attacks(name: str, reader: Reader, folder: Path) -> Iterator[tuple[str, bytes | Callable[[Path], object]]]:
    """Yield attacks on a reader: what the file is to hold, or what puts something in its place."""
    whole = (folder / reader.name).read_bytes()
    if not reader.name.startswith(("message", "p.png", "p.jpg")):
        yield "pipe", os.mkfifo
        yield "device", lambda path: path.symlink_to("/dev/zero")
        yield "folder", lambda path: path.mkdir()
        yield "circle of links", lambda path: path.symlink_to(path)
    yield "empty", b""
    yield "half", whole[: len(whole) // 2]
    yield "zeros", bytes(TEN)
    yield "noise", np.random.default_rng(0).bytes(TEN)
    yield "whole, then zeros", whole + bytes(TEN - len(whole))
    yield "brackets", b"[" * TEN
    yield "braces", b'{"a":' * (TEN // 5)
    yield "empty lists", b"[" + b"[]," * (TEN // 3 - 1) + b"[]]"
    yield "digits", b"9" * TEN
    yield "text", b'"' + b"y" * (TEN - 2) + b'"'
    yield "list of names", b"- \n" * (TEN // 3)
    yield "comment", b"# " + b"x" * (TEN - 3) + b"\n"
    yield "elements", b"<a>" * (TEN // 3)
    yield "lines of numbers", b"1\n" * (TEN // 2)
    if reader.form == "yaml":
        for key, tail in (("section", "joints: *a8"), ("value", "timing: {lead: *a8}"), ("entry", "instruction: *a8")):
            yield f"bomb in a {key}", _yaml_bomb("      " + tail)
        yield "many robots", _robots(3000, chain=False)
        yield "chain of likenesses", _robots(1500, chain=True)
        yield "long text", b"/**:\n  ros__parameters:\n    r: {like: so101, instruction: " + b"x" * 900_000 + b"}\n"
        yield "scalars", b"/**:\n  ros__parameters:\n    r: {like: so101, a: 2001-99-99, b: !!int x, c: !!map foo}\n"
        yield "unfinished alias", b"[*" * 5000
        yield (
            "list of lists",
            b"/**:\n  ros__parameters:\n    r: {like: so101, joints: {policy_order: [[1], {a: b}]}}\n",
        )
        yield "keys", b"/**:\n  ros__parameters:\n    r: {like: so101, 5: 6, ~: 7, [1]: 2}\n"
        yield "many keys", b"".join(b"k%d: v\n" % n for n in range(50_000))
    if name.startswith("config"):
        for way, value in (
            ("depth", 10**9), ("hidden_size", 10**9), ("max_len_seq", 10**9),
            ("florence_config.text_config.encoder_layers", 10**9),
            ("florence_config.vision_config.depths", [10**9] * 4),
            ("mlp_ratio", float("nan")), ("florence_config.vision_config.window_size", 10**9),
        ):  # fmt: skip
            yield f"{way} {value}", _nested_json(json.loads(whole), way, value)
    if name in ("safetensors", "statistics"):
        entry = '"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        head = ("{" + ",".join(entry % n for n in range(170_000)) + "}").encode()
        yield "tensors", struct.pack("<Q", len(head)) + head
        yield "huge shape", _safetensors({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    if name == "tokenizer":
        for key, value in (
            ("pre_tokenizer", {
                "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
            ("normalizer", {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 9}),
        ):  # fmt: skip
            yield f"{key} without end", json.dumps({**json.loads(whole), key: value}).encode()
    if name.startswith("mcap with"):
        yield "chunk of half a gigabyte", _squeezed(folder, name.split()[-1])
    if name == "mcap with zstd":
        yield "many chunks", _padded_chunks(2_000, 4 * MB)
        yield "large chunks", _padded_chunks(120, 60_000_000)
    if name == "sqlite":
        yield "endless view", lambda path: _sqlite(path.parent, view=True)
    if name == "info":
        for key, value in (
            ("data_path", "{episode_index:2000000000d}"), ("data_path", "../outside.parquet"), ("fps", 1e-300),
            ("data_path", "/etc/passwd"), ("data_path", "{episode_index.__class__.__mro__}"), ("fps", float("nan")),
            ("features", {"action": {"dtype": "float32", "shape": [10**9, 10**9]}}), ("chunks_size", 0),
        ):  # fmt: skip
            yield f"{key} {value}", json.dumps({**INFO, key: value}).encode()
    if name == "episodes":
        yield "many", b"".join(b'{"episode_index":%d,"length":3}\n' % n for n in range(200_000))
        yield "long", b'{"episode_index": 0, "length": 1000000000, "tasks": ["x"]}\n'
        yield "same", b'{"episode_index": 0, "length": 3, "tasks": ["x"]}\n' * 500
    if name == "parquet":
        yield "run lengths", _run_lengths()
    if name == "video":
        yield "list of files", b"ffconcat version 1.0\nfile /etc/passwd\n"
        yield "playlist", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    if name == "png":
        yield "25,000 a side", png(25_000, 25_000)
        yield "one row, 4 billion wide", png(8, 1)[:16] + struct.pack(">II", 1 << 31, 1) + png(8, 1)[24:]
    if name == "jpeg":
        yield "65,500 a side", whole.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65_500, 65_500), 1)
        yield "scans", whole[:-2] + b"\xff\xda\x00\x00" * 100_000 + whole[-2:]
    if name == cdr.COMPRESSED_IMAGE:
        yield (
            "25,000 a side",
            cdr._serialized(name, cdr._header(1), "png", np.frombuffer(png(25_000, 25_000), np.uint8)),
        )
    if name == cdr.JOINT_STATE:
        yield "many names", cdr.joint_state(5, ["a"] * 1_000_000, [0.0])
    if name == cdr.STRING:
        yield "long", cdr.string("x" * (TEN - 10))


def _safetensors(header: dict[str, Any]) -> bytes:
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head


def _run_lengths() -> bytes:
    """Return a parquet file of a few kB with 100 million equal rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream, rows = io.BytesIO(), 10_000_000
    part = pa.table(
        {"episode_index": pa.array(np.zeros(rows, np.int64)), "frame_index": pa.array(np.zeros(rows, np.int64))}
    )
    with pq.ParquetWriter(stream, part.schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(part)
    return stream.getvalue()


def _put(path: Path, what: bytes | Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    else:
        what(path)


def outcome_of(reader: Reader, folder: Path) -> str:
    """Return ``read``, ``refused``, or the class and place of another error."""
    try:
        reader.read(folder)
    except reader.error:
        return "refused"
    except BaseException as error:
        if is_interrupt(error):
            raise
        place, trace = "", error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            place = f"{Path(name).name}:{trace.tb_lineno}" if "xvla_ros" in name else place
            trace = trace.tb_next
        return f"{cause(error)[:200]} at {place}"
    return "read"


def _resident() -> tuple[int, int]:
    """Return bytes that are resident now, and the most that were since ``clear_refs`` was written."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(found[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def walk(folder: Path, names: list[str]) -> None:
    """Attack the readers of these names, or all, and print what becomes of each."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for name, reader in readers().items():
        if names and name not in names:
            continue
        home = folder / "".join(each if each.isalnum() else "_" for each in name)
        home.mkdir(parents=True)
        reader.make(home)
        first = outcome_of(reader, home)
        print(json.dumps({"reader": name, "attack": "none", "outcome": first, "s": 0.0, "mb": 0.0}), flush=True)
        made = list(attacks(name, reader, home))
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESSES, resource.RLIM_INFINITY))
        for attack, what in made:
            _put(home / reader.name, what)
            print(json.dumps({"reader": name, "attack": attack, "outcome": "", "s": 0.0, "mb": 0.0}), flush=True)
            Path("/proc/self/clear_refs").write_text("5")
            before, begun = _resident()[0], time.process_time()
            signal.alarm(GUARD_S)
            outcome = outcome_of(reader, home)
            signal.alarm(0)
            took, most = time.process_time() - begun, _resident()[1]
            said = {"reader": name, "attack": attack, "outcome": outcome, "s": round(took, 3)}
            print(json.dumps({**said, "mb": round((most - before) / MB, 1)}), flush=True)
        shutil.rmtree(home)


if __name__ == "__main__":
    walk(Path(sys.argv[1]), sys.argv[2:])
