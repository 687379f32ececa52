# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with arms, views, waypoints, the length of a bag, and the size of a data set.

    python bench/scaling.py [--only arms views …] [--picture FILE.svg] [--json FILE]

* ``arms``: what commanding so many arms takes of one core (``fleet.py --control``, single SO-101s).
* ``views``: a chunk of the network that ships, random weights, with so many cameras.
* ``waypoints``: the same with three cameras and chunks of so many waypoints.
* ``bag``: ``xvla bag info`` of a recording of so many minutes, sparse: joints and commands of an arm once a second.
* ``frames``: a data set of so many frames as training opens it, 1,000 draws and its statistics, pictures left out.

Every size is measured in a process of its own, one thread: processor time, the least of some rounds, and how far the
peak of its memory lies above where it began. The exponent is that of the larger half of the sizes, where what is fixed
counts least: 1 is in proportion, 2 a square. Exit code 1 when a promise does not hold.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fleet
import latency_inputs
import numpy as np
import results
import torch
from latency_work import resident

from xvla_ros.evaluation import bag_info
from xvla_ros.model.random_policy import random_policy
from xvla_ros.observation.faults import FaultTally
from xvla_ros.recordings import cdr
from xvla_ros.recordings.action_path import ActionPath
from xvla_ros.recordings.bag_writer import BagWriter
from xvla_ros.recordings.recording import Episode
from xvla_ros.robots.profile import load_robot
from xvla_ros.robots.profile.profile import profile_document
from xvla_ros.training.config import Augmentation, DatasetSettings
from xvla_ros.training.data.draws import Paraphrases
from xvla_ros.training.data.samples import DataSet, Samples
from xvla_ros.training.data.store import Store
from xvla_ros.types import NS, Embodiment

ROBOT = "so101"
WAYPOINTS, DRAWS, FRAMES_AN_EPISODE = 30, 1000, 200
TIME, MEMORY = "processor ms", "MB"
ROOM = 1024  # tokens of the network's position embedding, for six views and 240 waypoints
FLOOR_MB = 1.0  # less is lost in what an allocator asks for at once

Run = Callable[[], object]
Prepare = Callable[[int, Path], Run]


@dataclass(frozen=True)
class Growth:
    """What grows with what.

    Attributes:
        sizes: smallest first.
        prepare: makes what is measured, of a size, with a folder for its files.
        time, memory: largest exponents that are promised.
        rounds: of each size; the least time counts.
    """

    sizes: tuple[int, ...]
    prepare: Prepare
    time: float
    memory: float
    rounds: int = 1


def arms(size: int, _: Path) -> Run:
    """Command single arms for a second, simulated."""
    fleet.LED_S = 2.0
    return lambda: fleet.measure_control(size, 1.0, ROBOT)


def _network(views: int, waypoints: int) -> Run:
    shipped, _ = latency_inputs.shipped_network()
    slots = tuple(f"view{number}" for number in range(views))
    arm = Embodiment("arm", 19, "so101_bimanual_bce", slots, 1 / 30, 1 / 30, 10, image_pipeline="letterbox")
    centre, spread = {"arm": np.zeros(12)}, {"arm": np.ones(12)}
    policy = random_policy(
        [arm], state_mean=centre, state_std=spread, action_mean=centre, action_std=spread, chunk_size=waypoints,
        size=replace(shipped, max_len_seq=ROOM), instructions=[latency_inputs.INSTRUCTION],
    )  # fmt: skip
    observations = latency_inputs.make_observations(policy)
    return lambda: policy.predict(observations, seed=0)


def views(size: int, _: Path) -> Run:
    """A chunk with so many cameras."""
    return _network(size, WAYPOINTS)


def waypoints(size: int, _: Path) -> Run:
    """A chunk of so many waypoints."""
    return _network(latency_inputs.VIEWS, size)


def bag(minutes: int, folder: Path) -> Run:
    """Read a recording of an arm that was looked at once a second."""
    profile = load_robot(ROBOT)
    file = folder / f"{minutes}.mcap"
    names = [joint.name for joint in profile.joints.ordered]
    joints = profile.joints.ordered[0].topic
    group = profile.commands.by_name[profile.commands.groups[0]]
    with BagWriter(file, profile_document([profile]), stamp_ns=NS) as writer:
        for second in range(60 * minutes):
            stamp, here = (second + 1) * NS, 0.3 * np.sin(second / 7 + np.arange(len(names)))
            writer.write(joints, cdr.JOINT_STATE, stamp, cdr.joint_state(stamp, names, here))
            command = cdr.joint_trajectory(0, names, [NS], here[None])
            writer.write(group.topic, cdr.JOINT_TRAJECTORY, stamp, command)
    return lambda: bag_info.inspect(file, profile)


def frames(size: int, folder: Path) -> Run:
    """Open a data set whose frames are numbers alone, draw from it, and take its statistics."""
    profile = load_robot(ROBOT)
    count = size // FRAMES_AN_EPISODE
    period, width = NS // 30, profile.state_width
    within = np.arange(FRAMES_AN_EPISODE, dtype=np.int64) * period
    values = np.random.default_rng(0).standard_normal((FRAMES_AN_EPISODE, width)).astype(np.float32)
    starts = [number * (FRAMES_AN_EPISODE + 30) * period for number in range(count)]
    episodes = tuple(
        Episode(str(number), "touch the cube", True, start, int(start + within[-1]), ActionPath(start + within, values))
        for number, start in enumerate(starts)
    )
    store = Store(
        folder, "frames", episodes, np.arange(count + 1, dtype=np.int64) * FRAMES_AN_EPISODE,
        np.concatenate([start + within for start in starts]), np.tile(values, (count, 1)),
        np.zeros((size, 1), np.bool_), ("front",), {}, 30.0, "commanded", {}, (), (), FaultTally(),
    )  # fmt: skip
    rows = np.stack([np.zeros(size, np.int64), np.arange(size, dtype=np.int64)], axis=1)

    def opened() -> None:
        data_set = DataSet(
            DatasetSettings(paths=("frames",)), profile, profile.embodiment(), (store,), rows, rows[:0],
            np.arange(size), Paraphrases({}),
        )  # fmt: skip
        samples = Samples([data_set], WAYPOINTS, Augmentation(), 0)
        for index in range(DRAWS):
            samples.draw(index)
        samples.channel_statistics(profile.name)

    return opened


GROWTHS = {
    "arms": Growth((1, 2, 4, 8, 16), arms, 1.15, 1.15),
    "views": Growth((1, 2, 3, 4, 6), views, 1.3, 1.3, rounds=3),
    "waypoints": Growth((15, 30, 60, 120, 240), waypoints, 1.5, 1.5, rounds=3),
    "bag": Growth((6, 30, 120, 600), bag, 1.15, 1.15),
    "frames": Growth((1_000, 10_000, 100_000, 1_000_000), frames, 1.15, 1.15),
}
UNITS = {"bag": "minutes"}


def measured(growth: Growth, size: int) -> dict[str, float]:
    """Measure one size in a process of its own, so that memory is that of nothing before."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(growth, size, sending))
    child.start()
    sending.close()
    try:
        found: dict[str, float] = receiving.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the process of size {size} ended with code {child.exitcode}") from None
    child.join()
    return found


def _child(growth: Growth, size: int, sending: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="xvla-bench-") as folder:
        run = growth.prepare(size, Path(folder))
        run_once = functools.partial(_timed, run)
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what is asked for
        begun = resident("VmRSS")
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
        first = run_once()
        peak = resident("VmHWM")
        seconds = min([first, *(run_once() for _ in range(growth.rounds - 1))])
    sending.send({TIME: 1e3 * seconds, MEMORY: max(0, peak - begun) / 1e6})
    sending.close()


def _timed(run: Run) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit a power of the size to the larger half of the sizes, by least squares of the logarithms."""
    first = len(sizes) // 2 if len(sizes) > 3 else 0
    x, y = np.log(np.array(sizes[first:])), np.log(np.array(values[first:]))
    return float(np.polyfit(x, y, 1)[0])


def exponents(growth: Growth, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Fit those of time and memory."""
    sizes = [row["size"] for row in rows]
    return {
        TIME: exponent(sizes, [row[TIME] for row in rows]),
        MEMORY: exponent(sizes, [max(FLOOR_MB, row[MEMORY]) for row in rows]),
    }


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw time and memory over size, both axes logarithmic, a column for each growth."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["growth"] for row in rows))
    settings = {"svg.fonttype": "none", "svg.hashsalt": "xvla", "font.size": 8}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(2, len(names), figsize=(2.3 * len(names), 4), squeeze=False)
        for column, name in enumerate(names):
            own = [row for row in rows if row["growth"] == name]
            growth = GROWTHS[name]
            fitted, promised = exponents(growth, own), {TIME: growth.time, MEMORY: growth.memory}
            for line, what in enumerate((TIME, MEMORY)):
                panel, sizes = axes[line][column], [row["size"] for row in own]
                values = [max(row[what], 1e-3) for row in own]
                panel.loglog(sizes, values, marker=".")
                panel.set_title(f"{what}: exponent {fitted[what]:.2f} ≤ {promised[what]:g}", fontsize=8)
                panel.set_xlabel(UNITS.get(name, name))
                panel.minorticks_off()
                panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
                least, most = min(values), max(values)
                ticks = [least, most] if most > 1.3 * least else [most]  # two that are near would overlap
                panel.set_yticks(ticks, [f"{tick:,.0f}" if tick >= 100 else f"{tick:.3g}" for tick in ticks])
                # at least a decade, so that what hardly grows looks so
                middle, span = (least * most) ** 0.5, max(1.5 * most / least, 10) ** 0.5
                panel.set_ylim(middle / span, middle * span)
        figure.tight_layout()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)


def main() -> int:
    parser = results.parser(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(GROWTHS), default=list(GROWTHS), help="what to measure")
    parser.add_argument("--largest", type=int, default=0, help="leave out sizes above this (default: none)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw it, SVG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, promises = [], []
    for name in options.only:
        growth = GROWTHS[name]
        sizes = [size for size in growth.sizes if not options.largest or size <= options.largest]
        own = []
        for size in sizes:
            row = {"name": f"{name} {size}", "growth": name, "size": size, **measured(growth, size)}
            print(f"{row['name']}: {row[TIME]:.3g} {TIME}, {row[MEMORY]:.3g} {MEMORY}", file=sys.stderr, flush=True)
            own.append(row)
        rows += own
        if len(own) > 1:
            fitted, limits = exponents(growth, own), {TIME: growth.time, MEMORY: growth.memory}
            promises += [
                results.Promise(f"exponent of {what} over {name}", fitted[what], limits[what]) for what in limits
            ]
    if options.picture:
        draw(rows, options.picture)
    return results.finish(rows, promises, options.json)


if __name__ == "__main__":
    sys.exit(main())
