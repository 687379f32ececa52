"""Motion inside limits of position, velocity, acceleration and jerk, whatever is planned: Ruckig, state to state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ruckig import ControlInterface, InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

from xvla_ros.robots.limits import JointLimits

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Motion that follows a plan uses this share of the acceleration and jerk limits, and so does the brake that must
# always fit. The rest is for a joint that a controller's cubic left a little off the motion that was worked out.
SHARE = 0.95
# A controller joins two points by a cubic, which bulges out of the motion that was worked out between them: by at most
# 0.0437 * acceleration * duration in velocity (or half the highest velocity) and acceleration * duration² / 32 (or
# velocity * duration / 4) in position, the maxima over all motions of bounded acceleration. Margins of this size
# keep the cubic itself inside the limits.
VELOCITY_BULGE = 0.0437
POSITION_BULGE = 1 / 32
# A point further from the plan than this share of a joint's range, and than twice the margin, counts as limited.
LIMITED = 1e-4
TOLERANCE = 1e-9
STANDS = 1e-6  # s: a joint with so little left to brake is at rest
# Points that a path may get beyond its last time to come to rest; a motion that needs more is stopped without Ruckig.
MOST_EXTRA_POINTS = 300


@dataclass(frozen=True)
class MotionState:
    """Where J joints are and how they move.

    Attributes:
        position, velocity, acceleration: float64 [J], rad or m, and per s and s². The acceleration of a joint without
            a jerk limit may jump and is not read.
    """

    position: Floats
    velocity: Floats
    acceleration: Floats

    @classmethod
    def at_rest(cls, position: Floats) -> MotionState:
        """The state of joints that stand at ``position`` [J]."""
        return cls(position.copy(), np.zeros_like(position), np.zeros_like(position))

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.rows()).all())

    def rows(self) -> Floats:
        """Position, velocity and acceleration as [3, J]."""
        return np.array([self.position, self.velocity, self.acceleration])


@dataclass(frozen=True)
class LimitedPath:
    """Motion states at K times.

    Attributes:
        times: float64 [K] s after the start, strictly increasing.
        positions, velocities, accelerations: [K, J]; the last row of velocities and accelerations is zero.
        limited: number of points that a limit moved away from the plan by more than 1e-4 of a joint's range and than
            twice the margin of position; points of the braking at the end do not count.
    """

    times: Floats
    positions: Floats
    velocities: Floats
    accelerations: Floats
    limited: int


@dataclass(frozen=True)
class _Brake:
    """How joints come to rest from a state: ``at(s)`` gives [3, J], position, velocity and acceleration.

    Attributes:
        rest: [J] where they stop.
        low, high: [J] lowest and highest position on the way.
        duration: [J] s.
    """

    at: Callable[[float], Floats]
    rest: Floats
    low: Floats
    high: Floats
    duration: Floats


@dataclass(frozen=True)
class _Bounds:
    """Limits less the margins for a controller's cubic, [J] each."""

    lower: Floats
    upper: Floats
    velocity: Floats
    margin: Floats


class Limiter:
    """Turns plans into motion that can always be stopped in time: the limits of one robot's joints at work.

    A path is a chain of states. From each, Ruckig finds the fastest motion to the plan's next point; the state that
    it reaches by that point's time is taken, joint by joint, only if the joint could brake from there inside the
    position limits and before the path ends. Else the joint brakes. So from a state with such a brake, rest for
    one, every path is inside every limit and ends at rest, whatever the plan.

    Joints are limited each for itself: one that is held up does not delay the others. Not for use by two threads.
    """

    def __init__(self, limits: JointLimits) -> None:
        self._limits = limits
        joints = len(limits.joints)
        self._range = limits.upper - limits.lower
        self._acceleration = limits.max_acceleration * SHARE
        self._jerk = limits.max_jerk * SHARE
        self._jerky = np.isfinite(limits.max_jerk)
        self._otg, self._otg_one = Ruckig(joints), Ruckig(1)
        self._all = [True] * joints
        self._goal, self._goal_one, self._stop = (InputParameter(size) for size in (joints, 1, joints))
        self._goal.max_acceleration, self._goal.max_jerk = self._acceleration, self._jerk
        self._stop.control_interface = ControlInterface.Velocity
        self._stop.synchronization = Synchronization.No
        self._stop.target_velocity = self._stop.target_acceleration = [0.0] * joints

    def follow(self, start: MotionState, times: Floats, positions: Floats, velocities: Floats) -> LimitedPath:
        """Follow a plan as closely as the limits allow and be at rest at the last time.

        A plan that stays within 95 % of the limits of acceleration and jerk, of the velocity limit less about 1 %
        and of the position limits less a margin (0.8 mrad at 10 rad/s² and points 50 ms apart) is met
        at every point, without lag, until the path must brake for its end.
        A joint that starts outside its position limits returns and never goes further out than braking takes it.
        Where ``start`` itself cannot come to rest by the last time, points are added until it does.

        Args:
            start: the state at time 0.
            times: [K] s after it, positive, strictly increasing.
            positions, velocities: [K, J] of the plan; velocities those that the plan has at its points.

        Raises:
            ValueError: a number is not finite.
        """
        _check_finite(start, times, positions, velocities)
        bounds = self._bounds(times)
        self._goal.max_velocity = bounds.velocity
        targets = self._targets(times, positions, velocities, bounds)
        return self._chain(start, times, targets, positions, bounds)

    def brake(self, start: MotionState, times: Floats) -> LimitedPath:
        """Come to rest as soon as the limits allow; points are added where the last time is too early for that.

        Args:
            start: the state at time 0.
            times: [K] s after it, positive, strictly increasing.

        Raises:
            ValueError: a number is not finite.
        """
        _check_finite(start, times)
        brake = self._safe_brake(start.rows(), float(times[-1]), self._bounds(times))
        if brake is None or _takes_too_long(brake, times):
            return self._plain_stop(start, times)
        return _ended(_sampled(brake, times), times, brake, 0.0, 0)

    def _bounds(self, times: Floats) -> _Bounds:
        limits, longest = self._limits, float(np.diff(times, prepend=0.0).max())
        velocity = np.maximum(
            limits.max_velocity - VELOCITY_BULGE * limits.max_acceleration * longest, limits.max_velocity / 1.5)
        margin = np.minimum(
            limits.max_acceleration * longest**2 * POSITION_BULGE, limits.max_velocity * longest / 4)
        margin = np.minimum(margin, self._range / 8)
        return _Bounds(limits.lower + margin, limits.upper - margin, velocity, margin)

    def _targets(self, times: Floats, positions: Floats, velocities: Floats, bounds: _Bounds) -> Floats:
        """The plan [K, 3, J] with states from which the joints could be stopped inside the limits."""
        inside = np.clip(positions, bounds.lower, bounds.upper)
        up = np.minimum(self._speed_to_stop_in(bounds.upper - inside), bounds.velocity)
        down = np.minimum(self._speed_to_stop_in(inside - bounds.lower), bounds.velocity)
        speeds = np.clip(velocities, -down, up)
        targets = np.stack([inside, speeds, np.zeros_like(inside)], axis=1)
        if self._jerky.any() and len(times) > 2:
            change = np.gradient(velocities, times, axis=0, edge_order=2)
            with np.errstate(invalid="ignore"):
                most = np.minimum(self._acceleration, np.sqrt(2 * self._jerk * (bounds.velocity - np.abs(speeds))))
            kept = self._jerky & (speeds == velocities) & (inside == positions)
            targets[:, 2] = np.where(kept, np.clip(change, -most, most), 0.0)
        return targets

    def _speed_to_stop_in(self, distance: Floats) -> Floats:
        """The speed at constant velocity from which a joint stops within ``distance``, or a little less."""
        ramp = self._acceleration / (2 * self._jerk)
        speed: Floats = self._acceleration * (np.sqrt(ramp**2 + 2 * distance / self._acceleration) - ramp)
        return speed

    def _chain(
        self, start: MotionState, times: Floats, targets: Floats, plan: Floats, bounds: _Bounds
    ) -> LimitedPath:
        state, before, end = start.rows(), 0.0, float(times[-1])
        brake = self._safe_brake(state, end, bounds)
        if brake is None or _takes_too_long(brake, times):
            return self._plain_stop(start, times)
        states, ending = np.empty((len(times), *state.shape)), np.zeros((len(times), state.shape[1]), bool)
        for k, at in enumerate(times.tolist()):
            left = end - at
            aim = self._towards(state, targets[k], at - before)
            if aim is not None:
                aim[0] = self._evened(state, aim, at - before)
            state, ending[k], braking = self._take(aim, brake, at - before, left, bounds)
            following = braking or self._safe_brake(state, left, bounds)
            if following is None:
                states[k:] = _sampled(brake, times[k:] - before)
                break
            states[k], brake, before = state, following, at
        return _ended(states, times, brake, before, self._count_moved(states[:, 0], plan, ending, bounds))

    def _take(
        self, aim: Floats | None, brake: _Brake, step: float, left: float, bounds: _Bounds
    ) -> tuple[Floats, Flags, _Brake | None]:
        """The next state: of each joint what it aims at if it can be stopped from there, else what braking makes of it.

        Returns:
            The state [3, J]; [J] which joints brake so as to be at rest in time; the brake from the state where no
            joint had to brake.
        """
        braked = brake.at(step)
        nothing = np.zeros(braked.shape[1], bool)
        braking = None if aim is None else self._brake(aim, self._acceleration, self._jerk)
        if aim is None or braking is None:
            return braked, nothing, None
        inside = (braking.low >= np.minimum(bounds.lower, brake.low) - TOLERANCE) & (
            braking.high <= np.maximum(bounds.upper, brake.high) + TOLERANCE)
        in_time = braking.duration <= np.maximum(left, brake.duration - step) + TOLERANCE
        taken = inside & in_time
        if taken.all():
            return aim, nothing, braking
        return np.where(taken, aim, braked), ~in_time, None

    def _towards(self, state: Floats, target: Floats, step: float) -> Floats | None:
        """The state [3, J] after ``step`` s of the fastest motion to the target; a joint that could be there sooner
        is there at that time. None where Ruckig finds no motion."""
        goal = self._goal
        goal.current_position, goal.current_velocity, goal.current_acceleration = state.tolist()
        goal.target_position, goal.target_velocity, goal.target_acceleration = target.tolist()
        goal.enabled, goal.minimum_duration = self._all, None
        goal.synchronization = Synchronization.No
        fastest = self._solve(self._otg, goal)
        if fastest is None:
            return None
        reached = np.array(fastest.at_time(step))
        early = np.array(fastest.independent_min_durations) < step
        if not early.any():
            return reached
        goal.enabled, goal.minimum_duration, goal.synchronization = early.tolist(), step, Synchronization.Time
        timed = self._solve(self._otg, goal)
        if timed is not None and timed.duration <= step + TOLERANCE:
            reached[:, early] = target[:, early]
            return reached
        for joint in np.flatnonzero(early):
            reached[:, joint] = self._delayed(state[:, joint], target[:, joint], joint, step, reached[:, joint])
        return reached

    def _evened(self, state: Floats, aim: Floats, step: float) -> Floats:
        """Positions [J] of the state aimed at, moved so that the cubic to it keeps the acceleration limit throughout.

        Its acceleration falls evenly, from ``mean + bend`` to ``mean - bend``. A motion that speeds up and slows down
        within one step bends too much, and a controller that is stopped amid such a cubic may be too fast to brake.
        """
        (position, velocity, _), after = state, aim[1]
        mean = (after - velocity) / step
        straight = position + (velocity + after) * (step / 2)
        bend = (aim[0] - straight) * (6 / step**2)
        most = np.maximum(self._limits.max_acceleration - np.abs(mean), 0.0)
        moved: Floats = np.where(np.abs(bend) > most, straight + np.clip(bend, -most, most) * (step**2 / 6), aim[0])
        return moved

    def _delayed(self, state: Floats, target: Floats, joint: int, step: float, otherwise: Floats) -> Floats:
        """The state [3] after ``step`` s of one joint that must not arrive sooner, which may take far longer."""
        goal = self._goal_one
        goal.current_position, goal.current_velocity, goal.current_acceleration = state[:, None].tolist()
        goal.target_position, goal.target_velocity, goal.target_acceleration = target[:, None].tolist()
        goal.max_velocity = self._goal.max_velocity[joint : joint + 1]
        goal.max_acceleration, goal.max_jerk = self._acceleration[joint : joint + 1], self._jerk[joint : joint + 1]
        goal.minimum_duration = step
        found = self._solve(self._otg_one, goal)
        return otherwise if found is None else np.array(found.at_time(step))[:, 0]

    def _safe_brake(self, state: Floats, left: float, bounds: _Bounds) -> _Brake | None:
        """The brake that follows a plan's limits, or the full ones for a joint that needs them to stop in time."""
        brake = self._brake(state, self._acceleration, self._jerk)
        if brake is None:
            return None
        position = state[0]
        late = (brake.duration > left + TOLERANCE) | (
            brake.low < np.minimum(bounds.lower, position) - TOLERANCE) | (
            brake.high > np.maximum(bounds.upper, position) + TOLERANCE)
        if not late.any():
            return brake
        limits = self._limits
        hard = self._brake(state, np.where(late, limits.max_acceleration, self._acceleration),
                           np.where(late, limits.max_jerk, self._jerk))
        return hard or brake

    def _brake(self, state: Floats, acceleration: Floats, jerk: Floats) -> _Brake | None:
        stop, position = self._stop, state[0]
        stop.current_position, stop.current_velocity, stop.current_acceleration = state.tolist()
        stop.max_acceleration, stop.max_jerk = acceleration, jerk
        motion = self._solve(self._otg, stop)
        if motion is None:
            return None
        rest = np.array(motion.at_time(motion.duration)[0])
        turn = self._turning_point(state, jerk)
        return _Brake(
            lambda time: np.array(motion.at_time(time)),
            rest,
            np.minimum(np.minimum(position, rest), turn),
            np.maximum(np.maximum(position, rest), turn),
            np.array(motion.independent_min_durations),
        )

    def _turning_point(self, state: Floats, jerk: Floats) -> Floats:
        """Where [J] a joint turns round that brakes harder than its jerk limit lets it leave off; else its position."""
        position, velocity, acceleration = state
        opposed = self._jerky & (velocity * acceleration < 0)
        if not opposed.any():
            return position
        jerk = np.where(opposed, jerk, 1.0)
        left = acceleration**2 - 2 * jerk * np.abs(velocity)
        turns = opposed & (left > 0)
        time = (np.abs(acceleration) - np.sqrt(np.where(turns, left, 0.0))) / jerk
        easing = -np.sign(acceleration) * jerk
        path = position + velocity * time + acceleration * time**2 / 2 + easing * time**3 / 6
        turn: Floats = np.where(turns, path, position)
        return turn

    def _solve(self, otg: Ruckig, asked: InputParameter) -> Trajectory | None:
        motion = Trajectory(asked.degrees_of_freedom)
        try:
            result = otg.calculate(asked, motion)
        except RuckigError:
            return None
        return motion if result in (Result.Working, Result.Finished) else None

    def _count_moved(self, path: Floats, plan: Floats, ending: Flags, bounds: _Bounds) -> int:
        moved = np.abs(path - plan) > np.maximum(LIMITED * self._range, 2 * bounds.margin)
        return int((moved & ~np.logical_or.accumulate(ending, axis=0)).any(axis=1).sum())

    def _plain_stop(self, start: MotionState, times: Floats) -> LimitedPath:
        """Velocity that falls evenly to zero over the path: for a start so fast that Ruckig finds no end to it."""
        end, at, limits = float(times[-1]), times[:, None], self._limits
        positions = start.position + start.velocity * (at - at**2 / (2 * end))
        return LimitedPath(
            times,
            np.clip(positions, np.minimum(limits.lower, start.position), np.maximum(limits.upper, start.position)),
            start.velocity * (1 - at / end),
            np.concatenate([np.broadcast_to(-start.velocity / end, (len(times) - 1, len(limits.joints))),
                            np.zeros((1, len(limits.joints)))]),
            len(times),
        )


def _sampled(brake: _Brake, times: Floats) -> Floats:
    return np.stack([brake.at(time) for time in times.tolist()])


def _ended(states: Floats, times: Floats, brake: _Brake, since: float, limited: int) -> LimitedPath:
    """The path of ``states``, with points added where it is not at rest at its last time.

    Args:
        states: [K, 3, J].
        brake: that of the state at time ``since`` s; the states after it are on it.
    """
    spacing = _spacing(times)
    extra = int(np.ceil((since + brake.duration.max() - times[-1] - STANDS) / spacing))
    if extra > 0:
        times = np.concatenate([times, times[-1] + spacing * np.arange(1, extra + 1)])
        states = np.concatenate([states, _sampled(brake, times[-extra:] - since)])
    states[-1, 0], states[-1, 1:] = brake.rest, 0.0
    return LimitedPath(times, states[:, 0], states[:, 1], states[:, 2], limited)


def _takes_too_long(brake: _Brake, times: Floats) -> bool:
    return bool(brake.duration.max() > times[-1] + MOST_EXTRA_POINTS * _spacing(times))


def _spacing(times: Floats) -> float:
    return float(times[-1] - times[-2]) if len(times) > 1 else float(times[-1])


def _check_finite(start: MotionState, *parts: Floats) -> None:
    if not (start.is_finite() and all(np.isfinite(part).all() for part in parts)):
        raise ValueError("planned or measured motion holds NaN or Inf; nothing is sent")
