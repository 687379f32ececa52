# SPDX-License-Identifier: Apache-2.0
"""How smoothly chunks of actions are joined: every method, inference delay and way to start a trajectory, side by side.

    python bench/smoothness.py [--method NAME …] [--delay S …] [--dds] [--plots FOLDER] [--json FILE]

Two SO-101 arms pass goals in simulation (MuJoCo, the controllers' rules, 600 steps a second). The policy is
``two_paths``: each chunk starts from the observed joints, goes either of two good ways and is a little off at every
waypoint. Inference takes the delay ± 30 %. All runs are in process on simulated time (``closed_loop``), so they give
the same figures anywhere; ``--dds`` repeats one over real topics, with the node, the sampler and ``sim_node``.

Motion is looked at over the time of two waypoints, h = 67 ms, in which limits of acceleration turn a jump of the plan
into motion. With x the position of the joint that shows most, grippers left out:

- position step: |x(t + h) − x(t)|;
- velocity step: |x(t + h) − 2 x(t) + x(t − h)| / h.

At a chunk boundary it is the largest within h of the moment from which on the new chunk may count, and the 95th
percentile of all boundaries is told. Limits are the same quantities within a chunk: their 95th percentile in spans as
long of the chunks that the policy gives for the same observations when it has nothing to agree with, in the run of
``realtime_chunking`` with that delay and those controllers. So they do not depend on how chunks are joined, and every
method is held against the same. ``reference`` is what the commands in force ask of the controllers, ``measured`` where
the joints are, to which controllers that ramp in from the measured state and the servos add their own; ``inside`` is
the same away from boundaries, of the reference and as measured.

An arm oscillates if it goes back on its task, by more than ``BACK_S`` of it, or if it shakes: if the share of the power
of its joints' velocities above ``FAST_HZ`` is more than ``FASTER`` times that without delay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import results
from closed_loop import ClosedLoop, Motion
from numpy.typing import NDArray
from two_paths import Task, TwoPathPolicy, pair_task

from xvla_ros.control.motion import on_lines
from xvla_ros.robots import Profile, load_profile
from xvla_ros.robots.joints import from_policy
from xvla_ros.simulation.controllers import ControllerOptions
from xvla_ros.types import ActionChunk

Floats = NDArray[np.float64]

ROBOT = "so101_bimanual"
METHODS = ("realtime_chunking", "guided", "ensemble", "switch")
OURS, PLAIN = "realtime_chunking", "switch"
DDS = "over DDS"
DDS_DELAY_S = 0.1
AGREE = 0.1  # how far figures over DDS may be from those in process, of these
DELAYS_S = (0.0, 0.1, 0.3, 0.8)
IN_TIME_S = 0.3  # the longest delay at which chunks are promised to come in time
ROUNDS, SEED = 3, 1
LIMIT_S = 90.0  # of simulated time
ARRIVED = 0.05  # rad from the last goal
SPAN = 2  # waypoints
EVERY = 4  # samples, where the way along the task is looked at
LAGS_S = np.arange(0.0, 0.3, 0.005)
BACK_S, FAST_HZ, FASTER = 0.2, 2.0, 1.5
TRAVEL_SHARE, TIME_SHARE = 0.9, 1.1


@dataclass(frozen=True)
class Steps:
    """Position and velocity steps, rad and rad/s."""

    position: float
    velocity: float


@dataclass(frozen=True)
class Row:
    """One run."""

    method: str
    delay_ms: float
    from_desired: bool
    finished: bool
    task_s: float
    travel_rad: float
    tracking_mrad: float
    lag_ms: float
    added_lag_ms: float
    chunks: int
    dropped: int
    underruns: int
    back_s: float
    fast_share: float
    step_mrad: float
    measured_step_mrad: float
    within_step_mrad: float
    velocity_step: float
    measured_velocity_step: float
    within_velocity_step: float
    inside_velocity_step: float
    measured_inside_velocity_step: float
    boundaries: int
    refused: int

    def cells(self) -> dict[str, Any]:
        """For the table; None for what a run does not have, as one without boundaries."""
        return {name: None if value != value else value for name, value in vars(self).items()}


def run(profile: Profile, method: str, delay: float, from_desired: bool, *, seed: int = SEED) -> tuple[Motion, Task]:
    """One run in process."""
    smoothing = profile.smoothing.model_copy(update={"method": method})
    profile = profile.model_copy(update={"smoothing": smoothing})
    task = pair_task(profile, ROUNDS)
    policy = TwoPathPolicy(profile, task, delay=delay, seed=seed, sleeps=False)
    loop = ClosedLoop(profile, policy, ControllerOptions(interpolate_from_desired_state=from_desired))
    return loop.run(partial(_done, profile, policy, task), LIMIT_S), task


def run_over_dds(profile: Profile, delay: float, *, seed: int = SEED) -> tuple[Motion, Task]:
    """One run of the shipped profile through the node and real topics."""
    import over_dds

    task = pair_task(profile, ROUNDS)
    policy = over_dds.NotedPolicy(profile, task, delay=delay, seed=seed)
    return over_dds.run(profile, task, policy, partial(_done, profile, policy, task)), task


def _done(profile: Profile, policy: TwoPathPolicy, task: Task, positions: Floats) -> bool:
    return policy.done and bool((np.abs(positions - task.goals[-1])[_arm_joints(profile)] < ARRIVED).all())


def analyse(profile: Profile, method: str, delay: float, from_desired: bool, motion: Motion, task: Task) -> Row:
    """What a run shows."""
    joints, h = _arm_joints(profile), SPAN * profile.policy.waypoint_dt
    reference, measured = motion.reference[:, joints], motion.measured[:, joints]
    boundaries = np.array([taken.takeover for taken in motion.chunks if taken.follows])
    ours, seen = (at_boundaries(motion.times, signal, boundaries, h) for signal in (reference, measured))
    within = within_chunks([taken.free for taken in motion.chunks], profile)
    every = np.array([taken.takeover for taken in motion.chunks])
    inside, seen_inside = (away_from_boundaries(motion.times, signal, every, h) for signal in (reference, measured))
    plan = _plan(motion, profile)[:, joints]
    return Row(
        method=method,
        delay_ms=1e3 * delay,
        from_desired=from_desired,
        finished=motion.finished,
        task_s=float(motion.times[-1] - motion.times[0]),
        travel_rad=float(np.abs(np.diff(measured, axis=0)).sum()),
        tracking_mrad=1e3 * float(np.percentile(np.abs(measured - reference).max(axis=1), 95)),
        lag_ms=1e3 * _lag(motion.times, measured, plan),
        added_lag_ms=1e3 * _lag(motion.times, reference, plan),
        chunks=motion.status.chunks,
        dropped=motion.status.dropped_chunks,
        underruns=motion.status.holds,
        back_s=went_back(task, motion.times, motion.measured),
        fast_share=_fast_share(motion.times, motion.measured_velocity[:, joints]),
        step_mrad=1e3 * ours.position,
        measured_step_mrad=1e3 * seen.position,
        within_step_mrad=1e3 * within.position,
        velocity_step=ours.velocity,
        measured_velocity_step=seen.velocity,
        within_velocity_step=within.velocity,
        inside_velocity_step=inside.velocity,
        measured_inside_velocity_step=seen_inside.velocity,
        boundaries=len(boundaries),
        refused=motion.rejected,
    )


def _arm_joints(profile: Profile) -> list[int]:
    return [i for i in range(len(profile.joints.policy_order)) if i not in profile.action_spec.gripper]


def steps(positions: Floats, span: int, h: float) -> tuple[Floats, Floats]:
    """Position steps [N − span] and velocity steps [N − 2 span] of positions [N, J], ``span`` samples and ``h`` s
    apart; element i of each begins at sample i."""
    position = np.abs(positions[span:] - positions[:-span]).max(axis=1)
    velocity = np.abs(positions[2 * span :] - 2 * positions[span:-span] + positions[: -2 * span]).max(axis=1) / h
    return position, velocity


def _percentile(pairs: Sequence[tuple[float, float]]) -> Steps:
    if not pairs:
        return Steps(float("nan"), float("nan"))
    position, velocity = np.percentile(np.array(pairs), 95, axis=0)
    return Steps(float(position), float(velocity))


def _largest(times: Floats, positions: Floats, starts: Iterable[int], h: float) -> Steps:
    """The 95th percentile, over spans of ``h`` s from samples ``starts``, of the largest steps in each."""
    span = round(h / float(times[1] - times[0]))
    position, velocity = steps(positions, span, h)
    pairs = []
    for k in starts:
        if k >= span and k + 2 * span < len(times):
            # a position step counts by its middle, as a velocity step does
            pairs.append(
                (
                    float(position[k - span // 2 : k + span - span // 2 + 1].max()),
                    float(velocity[k - span : k + 1].max()),
                )
            )
    return _percentile(pairs)


def at_boundaries(times: Floats, positions: Floats, boundaries: Floats, h: float) -> Steps:
    """The 95th percentile of the largest steps within ``h`` s from each boundary.

    Args:
        times: [N] s, evenly spaced.
        positions: [N, J] rad.
        boundaries: [K] s.
    """
    return _largest(times, positions, np.searchsorted(times, boundaries), h)


def away_from_boundaries(times: Floats, positions: Floats, boundaries: Floats, h: float) -> Steps:
    """The same of spans as long that have nothing of a boundary's in them; arguments as of ``at_boundaries``."""
    span = round(h / float(times[1] - times[0]))
    begin = np.searchsorted(times, boundaries)
    end = np.append(begin[1:], len(times))
    starts = [k for b, e in zip(begin, end, strict=True) for k in range(b + 2 * span, e - 2 * span, max(span // 2, 1))]
    return _largest(times, positions, starts, h)


def within_chunks(chunks: Sequence[ActionChunk], profile: Profile) -> Steps:
    """The same of spans as long inside chunks as the policy gives them."""
    joints, pairs = _arm_joints(profile), []
    for chunk in chunks:
        position, velocity = steps(
            from_policy(chunk.actions, profile)[:, joints], SPAN, SPAN * profile.policy.waypoint_dt
        )
        for k in range(len(velocity) - SPAN):
            pairs.append((float(position[k : k + SPAN + 1].max()), float(velocity[k : k + SPAN + 1].max())))
    return _percentile(pairs)


def _plan(motion: Motion, profile: Profile) -> Floats:
    """What the newest chunk asks at every time: [N, J]."""
    takeovers = np.array([taken.takeover for taken in motion.chunks])
    newest = np.maximum(np.searchsorted(takeovers, motion.times, side="right") - 1, 0)
    plan = np.empty_like(motion.reference)
    for index, taken in enumerate(motion.chunks):
        now = newest == index
        due = taken.chunk.stamp / 1e9 + taken.chunk.times
        positions = from_policy(taken.chunk.actions, profile)
        plan[now] = on_lines(motion.times[now], due, positions)
    return plan


def _lag(times: Floats, signal: Floats, plan: Floats) -> float:
    """The constant lag in s by which a signal [N, J] follows the plan [N, J] best; NaN where it is beyond those tried,
    as for an arm that stands while it waits, whose chunks count from when they land."""
    shifts = np.round(LAGS_S / (times[1] - times[0])).astype(int)
    longest = int(shifts.max())
    errors = [np.mean((signal[longest:] - plan[longest - shift : len(plan) - shift]) ** 2) for shift in shifts]
    best = int(np.argmin(errors))
    return float(LAGS_S[best]) if best < len(LAGS_S) - 1 else float("nan")


def went_back(task: Task, times: Floats, measured: Floats) -> float:
    """The most, in s of the task, by which measured joints [N, J] fell behind where they had been on it."""
    progress, furthest, most = 0.0, 0.0, 0.0
    for joints in measured[::EVERY]:
        progress = task.locate(joints, progress, EVERY * float(times[1] - times[0]))
        furthest = max(furthest, progress)
        most = max(most, furthest - progress)
    return most


def _fast_share(times: Floats, velocities: Floats) -> float:
    power = np.abs(np.fft.rfft(velocities - velocities.mean(axis=0), axis=0)) ** 2
    fast = np.fft.rfftfreq(len(times), float(times[1] - times[0])) > FAST_HZ
    return float(power[fast].sum() / power.sum())


def promises(rows: Sequence[Row]) -> list[results.Promise]:
    """What is promised of the rows that there are."""
    found = {(row.method, row.delay_ms / 1e3, row.from_desired): row for row in rows}
    made: list[results.Promise] = []
    for (method, delay, from_desired), row in found.items():
        if method != OURS:
            continue
        name = f"{delay * 1e3:.0f} ms, {'from desired' if from_desired else 'from measured'}"
        still = found.get((OURS, 0.0, from_desired))
        if delay <= IN_TIME_S:
            made += _in_time(name, row, still, found.get((PLAIN, delay, from_desired)))
        else:
            made += _too_slow(name, row, still)
    over_dds = found.get((DDS, DDS_DELAY_S, False))
    in_process = found.get((OURS, DDS_DELAY_S, False))
    if over_dds is not None and in_process is not None:
        made += _agreeing(over_dds, in_process)
    return made


def _agreeing(over_dds: Row, in_process: Row) -> list[results.Promise]:
    made = [results.Promise(f"{DDS}: underruns and dropped chunks", over_dds.underruns + over_dds.dropped, 0)]
    for what, column in (("task time", "task_s"), ("joint travel", "travel_rad"), ("chunks", "chunks")):
        ratio = getattr(over_dds, column) / getattr(in_process, column)
        made.append(results.Promise(f"{DDS}: {what} differs from that in process by", abs(ratio - 1.0), AGREE))
    made.append(results.Promise(f"{DDS}: position step, mrad", over_dds.step_mrad, in_process.within_step_mrad))
    made.append(
        results.Promise(f"{DDS}: velocity step, rad/s", over_dds.velocity_step, in_process.within_velocity_step)
    )
    return made


def _in_time(name: str, ours: Row, still: Row | None, plain: Row | None) -> list[results.Promise]:
    made = [results.Promise(f"{name}: underruns and dropped chunks", ours.underruns + ours.dropped, 0)]
    if still is not None:
        made += [
            results.Promise(
                f"{name}: joint travel of that without delay", ours.travel_rad / still.travel_rad, TRAVEL_SHARE, False
            ),
            results.Promise(f"{name}: task time of that without delay", ours.task_s / still.task_s, TIME_SHARE),
        ]
    for what, column in (("position step, mrad", "step_mrad"), ("velocity step, rad/s", "velocity_step")):
        limit = getattr(ours, f"within_{column}")
        made.append(results.Promise(f"{name}: {what}", getattr(ours, column), limit))
        made.append(results.Promise(f"{name}: measured {what}", getattr(ours, f"measured_{column}"), limit))
    if plain is not None:
        worst = max(plain.step_mrad / ours.within_step_mrad, plain.velocity_step / ours.within_velocity_step)
        made.append(
            results.Promise(f"{name}: the worse of the two steps with {PLAIN}, in these limits", worst, 1.0, False)
        )
    return made


def _too_slow(name: str, ours: Row, still: Row | None) -> list[results.Promise]:
    made = [
        results.Promise(f"{name}: the task is done", float(ours.finished), 1.0, False),
        results.Promise(f"{name}: s of the task gone back", ours.back_s, BACK_S),
    ]
    if still is not None:
        made.append(
            results.Promise(f"{name}: share of power above {FAST_HZ:g} Hz", ours.fast_share, FASTER * still.fast_share)
        )
    return made


def plot(profile: Profile, motions: dict[str, Motion], file: Path) -> None:
    """Draw some joints of runs, commanded and measured, with the moments at which chunks take over."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(motions), 2, figsize=(16, 4 * len(motions)), squeeze=False, sharex=True)
    for (title, motion), (left, right) in zip(motions.items(), axes, strict=True):
        for color, joint in zip(("C0", "C1", "C2"), (0, 1, 4), strict=True):
            left.plot(motion.times, motion.reference[:, joint], color, label=profile.joints.policy_order[joint])
            left.plot(motion.times, motion.measured[:, joint], color, linestyle=":")
            right.plot(motion.times, motion.reference_velocity[:, joint], color)
        for taken in motion.chunks:
            left.axvline(taken.takeover, color="k", linewidth=0.3)
            right.axvline(taken.takeover, color="k", linewidth=0.3)
        left.set_title(title)
        left.set_ylabel("rad")
        right.set_ylabel("rad/s")
        left.set_xlim(motion.times[0], motion.times[0] + 8.0)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def main() -> int:
    parser = results.parser("Joins chunks of actions in every way, at several inference delays, and looks for steps.")
    parser.add_argument("--method", action="append", choices=METHODS, help="only this one; may be given again")
    parser.add_argument("--delay", action="append", type=float, metavar="S", help="only this one; may be given again")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the joints of every delay into FOLDER")
    parser.add_argument("--dds", action="store_true", help="also repeat one run over real topics")
    given = parser.parse_args()
    profile = load_profile(ROBOT)[ROBOT]
    rows: list[Row] = []
    for from_desired in (False, True):
        for delay in given.delay or DELAYS_S:
            motions = {}
            for method in given.method or METHODS:
                motion, task = run(profile, method, delay, from_desired)
                rows.append(analyse(profile, method, delay, from_desired, motion, task))
                motions[f"{method}, {1e3 * delay:.0f} ms"] = motion
            if given.plots is not None:
                given.plots.mkdir(parents=True, exist_ok=True)
                start = "desired" if from_desired else "measured"
                plot(profile, motions, given.plots / f"{1e3 * delay:.0f}_ms_from_{start}.png")
    if given.dds:
        motion, task = run_over_dds(profile, DDS_DELAY_S)
        rows.append(analyse(profile, DDS, DDS_DELAY_S, False, motion, task))
    return results.finish([row.cells() for row in rows], promises(rows), given.json)


if __name__ == "__main__":
    sys.exit(main())
