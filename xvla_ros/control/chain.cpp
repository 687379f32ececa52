// SPDX-License-Identifier: Apache-2.0
// The chain of states of limiter.py, compiled: the same steps with the same Ruckig, joint by joint, without a Python
// object for each number. What it cannot do within the points given, it leaves to Python.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <ruckig/ruckig.hpp>

namespace {

using ruckig::Block;
using ruckig::Profile;

struct State {
    double position, velocity, acceleration;
};

// Limits of one joint: its own, those that plans are followed with, and those less the margins of this path.
struct Joint {
    double velocity, acceleration, jerk;
    double follow_acceleration, follow_jerk;
    double lower, upper, bound, margin;
};

// As in limiter.py and motion.py.
struct Constants {
    double tolerance, overtaken, stands, most_extra_points;
    int rounds;
};

struct Brake {
    Profile profile;
    double rest, low, high, duration;
};

// Returns the state after the end of a motion, which keeps its last acceleration.
State state_after(const Profile& motion, double since) {
    const auto [p, v, a] = ruckig::integrate(since, motion.p.back(), motion.v.back(), motion.a.back(), 0.0);
    return {p, v, a};
}

// Returns the state that a motion has after some time.
State state_at(const Profile& motion, double time) {
    const ruckig::BrakeProfile& brake = motion.brake;
    if (brake.duration > 0.0 && time < brake.duration) {
        const size_t i = time < brake.t[0] ? 0 : 1;
        const auto [p, v, a] = ruckig::integrate(i ? time - brake.t[0] : time, brake.p[i], brake.v[i], brake.a[i],
                                                 brake.j[i]);
        return {p, v, a};
    }
    double since = time - brake.duration;
    if (since >= motion.t_sum.back()) {
        return state_after(motion, since - motion.t_sum.back());
    }
    const size_t i = std::upper_bound(motion.t_sum.begin(), motion.t_sum.end(), since) - motion.t_sum.begin();
    since -= i ? motion.t_sum[i - 1] : 0.0;
    const auto [p, v, a] = ruckig::integrate(since, motion.p[i], motion.v[i], motion.a[i], motion.j[i]);
    return {p, v, a};
}

// Finds the durations that a motion between two states can have; false where Ruckig finds no motion.
bool find_motion(const State& from, const State& to, double most, double least, const Joint& joint, Block& found,
                 Profile& motion) {
    const double acceleration = joint.follow_acceleration, jerk = joint.follow_jerk;
    ruckig::InputParameter<1> asked;
    asked.current_position[0] = from.position, asked.current_velocity[0] = from.velocity;
    asked.current_acceleration[0] = from.acceleration;
    asked.target_position[0] = to.position, asked.target_velocity[0] = to.velocity;
    asked.target_acceleration[0] = to.acceleration;
    asked.max_velocity[0] = most, asked.min_velocity = {least};
    asked.max_acceleration[0] = acceleration, asked.max_jerk[0] = jerk;
    if (!asked.validate<false>(false, true)) {
        return false;
    }
    motion = Profile();
    motion.set_boundary(from.position, from.velocity, from.acceleration, to.position, to.velocity, to.acceleration);
    double &p = motion.p[0], &v = motion.v[0], &a = motion.a[0];
    if (std::isinf(jerk)) {
        motion.brake.get_second_order_position_brake_trajectory(v, most, least, acceleration, -acceleration);
        motion.brake.finalize_second_order(p, v, a);
        ruckig::PositionSecondOrderStep1 step(p, v, motion.pf, motion.vf, most, least, acceleration, -acceleration);
        return step.get_profile(motion, found);
    }
    motion.brake.get_position_brake_trajectory(v, a, most, least, acceleration, -acceleration, jerk);
    motion.brake.finalize(p, v, a);
    ruckig::PositionThirdOrderStep1 step(p, v, a, motion.pf, motion.vf, motion.af, most, least, acceleration,
                                         -acceleration, jerk);
    return step.get_profile(motion, found);
}

// Stretches a motion to a duration that it can have; false where Ruckig fails.
bool stretch(Profile& motion, double duration, double most, double least, const Joint& joint) {
    const double acceleration = joint.follow_acceleration, jerk = joint.follow_jerk;
    const double time = duration - motion.brake.duration;
    const double p = motion.p[0], v = motion.v[0], a = motion.a[0];
    if (std::isinf(jerk)) {
        ruckig::PositionSecondOrderStep2 step(time, p, v, motion.pf, motion.vf, most, least, acceleration,
                                              -acceleration);
        return step.get_profile(motion);
    }
    ruckig::PositionThirdOrderStep2 step(time, p, v, a, motion.pf, motion.vf, motion.af, most, least, acceleration,
                                         -acceleration, jerk);
    return step.get_profile(motion);
}

// Says whether three jerks, each for a third of the time, lead from one state to another inside the limits: then there
// is a motion of this duration, and Ruckig need not look for one. False says nothing.
bool is_led_over(const State& from, const State& to, double duration, const Joint& joint) {
    const double limit = joint.follow_jerk, most = joint.follow_acceleration, h = duration / 3;
    if (std::isinf(limit)) {
        return false;
    }
    const double changes = (to.acceleration - from.acceleration) / h;
    const double gains = (to.velocity - from.velocity - from.acceleration * duration) / (h * h);
    const double ways = (to.position - from.position - (from.velocity + from.acceleration * duration / 2) * duration) /
                        (h * h * h);
    const double first = ways - gains + changes / 3;
    const double second = gains - changes / 2 - 2 * first;
    const double third = changes - first - second;
    if (std::abs(first) > limit || std::abs(second) > limit || std::abs(third) > limit) {
        return false;
    }
    const double bulge = limit * h * h / 8;  // of velocity between the ends of a third
    State at = from;
    for (double jerk : {first, second, third, 0.0}) {
        if (std::abs(at.acceleration) > most || std::abs(at.velocity) + bulge > joint.bound) {
            return false;
        }
        at.velocity += h * (at.acceleration + h * jerk / 2);
        at.acceleration += h * jerk;
    }
    return true;
}

class Chain {
  public:
    Chain(const Constants& constants, std::vector<Joint> joints)
        : constants(constants), joints(std::move(joints)), count(this->joints.size()) {}

    // Writes states [K][3][J] and which joints end [K][J]; false where the points given do not do, or Ruckig fails.
    bool follow(const double* start, const double* times, const double* targets, size_t points, double* states,
                uint8_t* ending) {
        std::vector<State> state(count), aim(count), braked(count);
        std::vector<Brake> brake(count), following(count);
        std::vector<uint8_t> in_time(count);
        for (size_t j = 0; j < count; ++j) {
            state[j] = {start[j], start[count + j], start[2 * count + j]};
        }
        const double end = times[points - 1], spacing = points > 1 ? end - times[points - 2] : end;
        double before = 0.0;
        if (!safe(state, end, brake) || longest(brake) > end + constants.most_extra_points * spacing) {
            return false;
        }
        std::fill(ending, ending + points * count, 0);
        for (size_t k = 0; k < points; ++k) {
            const double step = times[k] - before, left = end - times[k];
            for (size_t j = 0; j < count; ++j) {
                braked[j] = state_at(brake[j].profile, step);
            }
            bool has_next = false;
            if (next_state(state, targets, times, k, points, before, k == 0 ? constants.rounds : 1, aim)) {
                for (size_t j = 0; j < count; ++j) {
                    even(state[j], aim[j], step, joints[j]);
                }
                has_next = gentle(aim, following);
            }
            if (has_next) {
                bool all_taken = true;
                for (size_t j = 0; j < count; ++j) {
                    const double low = std::min(joints[j].lower, brake[j].low) - constants.tolerance;
                    const double high = std::max(joints[j].upper, brake[j].high) + constants.tolerance;
                    const bool inside = following[j].low >= low && following[j].high <= high &&
                                        cubic_inside(state[j], aim[j], step, low, high);
                    in_time[j] = following[j].duration <=
                                 std::max(left, brake[j].duration - step) + constants.tolerance;
                    if (!(inside && in_time[j])) {
                        aim[j] = braked[j];
                        all_taken = false;
                    }
                }
                if (!all_taken) {
                    for (size_t j = 0; j < count; ++j) {
                        ending[k * count + j] = !in_time[j];
                    }
                    has_next = safe(aim, left, following);
                }
            } else {
                aim = braked;
                has_next = safe(aim, left, following);
            }
            if (!has_next) {
                for (; k < points; ++k) {
                    for (size_t j = 0; j < count; ++j) {
                        write(state_at(brake[j].profile, times[k] - before), states, k, j);
                    }
                }
                break;
            }
            state.swap(aim);
            brake.swap(following);
            before = times[k];
            for (size_t j = 0; j < count; ++j) {
                write(state[j], states, k, j);
            }
        }
        if (before + longest(brake) - end - constants.stands > 0.0) {
            return false;
        }
        for (size_t j = 0; j < count; ++j) {
            write({brake[j].rest, 0.0, 0.0}, states, points - 1, j);
        }
        return true;
    }

  private:
    void write(const State& state, double* states, size_t k, size_t j) const {
        double* row = states + 3 * count * k + j;
        row[0] = state.position, row[count] = state.velocity, row[2 * count] = state.acceleration;
    }

    static double longest(const std::vector<Brake>& brake) {
        double most = 0.0;
        for (const Brake& each : brake) {
            most = std::max(most, each.duration);
        }
        return most;
    }

    // Brakes._brake for one joint.
    static bool brake_of(const State& from, double acceleration, double jerk, Brake& brake) {
        if (std::isnan(from.position) || std::isnan(from.velocity) || std::isnan(from.acceleration)) {
            return false;
        }
        Profile motion;
        Block found;
        motion.set_boundary_for_velocity(from.position, from.velocity, from.acceleration, 0.0, 0.0);
        double &p = motion.p[0], &v = motion.v[0], &a = motion.a[0];
        bool is_found;
        if (std::isinf(jerk)) {
            motion.brake.get_second_order_velocity_brake_trajectory();
            motion.brake.finalize_second_order(p, v, a);
            ruckig::VelocitySecondOrderStep1 step(v, motion.vf, acceleration, -acceleration);
            is_found = step.get_profile(motion, found);
        } else {
            motion.brake.get_velocity_brake_trajectory(a, acceleration, -acceleration, jerk);
            motion.brake.finalize(p, v, a);
            ruckig::VelocityThirdOrderStep1 step(v, a, motion.vf, motion.af, acceleration, -acceleration, jerk);
            is_found = step.get_profile(motion, found);
        }
        if (!is_found) {
            return false;
        }
        const double turn = turning_point(from, jerk);
        brake.profile = found.p_min;
        brake.duration = found.t_min;
        brake.rest = state_at(brake.profile, brake.duration).position;
        brake.low = std::min(std::min(from.position, brake.rest), turn);
        brake.high = std::max(std::max(from.position, brake.rest), turn);
        return true;
    }

    static double turning_point(const State& from, double jerk) {
        const auto [position, velocity, acceleration] = from;
        const double eased = acceleration * acceleration / (2 * jerk);
        if (!(velocity * acceleration < 0.0 && eased > std::abs(velocity))) {
            return position;
        }
        const double left = acceleration * acceleration - 2 * jerk * std::abs(velocity);
        const double time = (std::abs(acceleration) - std::sqrt(left)) / jerk;
        const double easing = acceleration > 0.0 ? -jerk : jerk;
        return position + velocity * time + acceleration * (time * time) / 2 + easing * (time * time * time) / 6;
    }

    bool gentle(const std::vector<State>& from, std::vector<Brake>& brake) const {
        for (size_t j = 0; j < count; ++j) {
            if (!brake_of(from[j], joints[j].follow_acceleration, joints[j].follow_jerk, brake[j])) {
                return false;
            }
        }
        return true;
    }

    // Brakes.safe.
    bool safe(const std::vector<State>& from, double left, std::vector<Brake>& brake) const {
        if (!gentle(from, brake)) {
            return false;
        }
        std::vector<double> jerk(count), acceleration(count);
        for (size_t j = 0; j < count; ++j) {
            jerk[j] = joints[j].follow_jerk, acceleration[j] = joints[j].follow_acceleration;
        }
        for (int harder = 0; harder < 2; ++harder) {
            bool any_late = false;
            for (size_t j = 0; j < count; ++j) {
                const double over = harder ? joints[j].margin / 2 : 0.0, here = from[j].position;
                if (brake[j].duration > left + constants.tolerance ||
                    brake[j].low < std::min(joints[j].lower - over, here) - constants.tolerance ||
                    brake[j].high > std::max(joints[j].upper + over, here) + constants.tolerance) {
                    any_late = true;
                    acceleration[j] = joints[j].acceleration;
                    jerk[j] = harder ? std::numeric_limits<double>::infinity() : joints[j].jerk;
                }
            }
            if (!any_late) {
                return true;
            }
            std::vector<Brake> again = brake;
            bool is_found = true;
            for (size_t j = 0; j < count && is_found; ++j) {
                is_found = brake_of(from[j], acceleration[j], jerk[j], again[j]);
            }
            if (is_found) {
                brake.swap(again);
            }
        }
        return true;
    }

    // Pursuit.next_state.
    bool next_state(const std::vector<State>& state, const double* targets, const double* times, size_t k,
                    size_t points, double before, int rounds, std::vector<State>& reached) const {
        const double step = times[k] - before;
        std::vector<double> duration(count);
        std::vector<size_t> late, early;
        bool all_in_time = true;
        Block found;
        Profile motion;
        for (size_t j = 0; j < count; ++j) {
            const State point = target(targets, k, j);
            double moving;
            if (!meet(state[j], point, step, step, j, found, motion, reached[j], moving)) {
                return false;
            }
            duration[j] = found.t_min;
            if (duration[j] > step + constants.tolerance) {
                late.push_back(j);
            } else if (duration[j] < step) {
                early.push_back(j);
                const double most = joints[j].bound - moving, least = -joints[j].bound - moving;
                all_in_time = all_in_time && !found.is_blocked(step) &&
                              (is_led_over(state[j], point, step, joints[j]) ||
                               stretch(motion, step, most, least, joints[j]));
            }
        }
        for (size_t j : early) {  // one of them can be there sooner or far later; then each goes for itself
            reached[j] = all_in_time ? target(targets, k, j) : delayed(state[j], target(targets, k, j), step, j, reached[j]);
        }
        std::vector<State> next(count);
        std::vector<double> durations(count);
        for (int round = 0; round < rounds && !late.empty(); ++round) {
            for (size_t j : late) {
                size_t ahead = k;
                while (ahead < points - 1 && times[ahead] - before < duration[j]) {
                    ++ahead;
                }
                const State point = target(targets, ahead, j);
                double moving;
                if (!meet(state[j], point, times[ahead] - before, step, j, found, motion, next[j], moving)) {
                    return true;
                }
                durations[j] = found.t_min;
            }
            for (size_t j : late) {
                if (durations[j] >= step) {
                    reached[j] = next[j];
                }
                duration[j] = durations[j];
            }
        }
        return true;
    }

    State target(const double* targets, size_t k, size_t j) const {
        const double* row = targets + 3 * count * k + j;
        return {row[0], row[count], row[2 * count]};
    }

    // Pursuit._meet for one joint, seen from a frame that moves with the point.
    bool meet(const State& state, const State& point, double after, double step, size_t j, Block& found,
              Profile& motion, State& reached, double& moving) const {
        const Joint& joint = joints[j];
        const double fastest = joint.bound * constants.overtaken;
        moving = std::min(std::max(point.velocity, -fastest), fastest);
        const double origin = point.position - moving * after;
        const State from = {state.position - origin, state.velocity - moving, state.acceleration};
        const State to = {0.0, point.velocity - moving, point.acceleration};
        if (!find_motion(from, to, joint.bound - moving, -joint.bound - moving, joint, found, motion)) {
            return false;
        }
        reached = state_at(found.p_min, step);
        reached.position += origin;  // in this order, as in Python: Ruckig's answers can hang on the last bit
        reached.position += moving * step;
        reached.velocity += moving;
        return true;
    }

    // Pursuit._delay_one.
    State delayed(const State& state, const State& point, double step, size_t j, const State& fastest) const {
        const Joint& joint = joints[j];
        Block found;
        Profile motion;
        if (!find_motion(state, point, joint.bound, -joint.bound, joint, found, motion)) {
            return fastest;
        }
        if (!found.is_blocked(step)) {
            const bool is_met = stretch(motion, step, joint.bound, -joint.bound, joint);
            return is_met ? state_after(motion, step - (motion.brake.duration + motion.t_sum.back())) : fastest;
        }
        double soonest = std::numeric_limits<double>::infinity();
        for (double each : {found.t_min, found.a ? found.a->right : 0.0, found.b ? found.b->right : 0.0}) {
            if (each >= step && !found.is_blocked(each)) {
                soonest = std::min(soonest, each);
            }
        }
        return state_at(found.get_profile(soonest), step);
    }

    // Limiter._evened for one joint.
    static void even(const State& before, State& aim, double step, const Joint& joint) {
        const double mean = (aim.velocity - before.velocity) / step;
        const double straight = before.position + (before.velocity + aim.velocity) * (step / 2);
        const double bend = (aim.position - straight) * (6 / (step * step));
        const double peak = std::abs(bend) * (step / 4);
        if (std::abs(mean) + std::abs(bend) <= joint.acceleration &&
            std::max(std::abs(before.velocity), std::abs(aim.velocity)) + peak <= joint.velocity) {
            return;
        }
        const double way = bend > 0.0 ? 1.0 : bend < 0.0 ? -1.0 : 0.0;
        const double room = (joint.velocity - way * before.velocity) * (2 / step) - way * mean;
        const double fast =
            std::max(room + std::sqrt(std::max(room * room - mean * mean, 0.0)), std::abs(mean));
        const double most = std::max(std::min(joint.acceleration - std::abs(mean), fast), 0.0);
        if (std::abs(bend) > most) {
            aim.position = straight + way * most * (step * step / 6);
        }
    }

    // motion.cubic_inside for one joint.
    static bool cubic_inside(const State& before, const State& after, double step, double low, double high) {
        const double first = before.position + before.velocity * (step / 3);
        const double second = after.position - after.velocity * (step / 3);
        if (std::min(first, second) >= low && std::max(first, second) <= high) {
            return true;
        }
        const double c = 3 * (first - before.position), middle = 3 * (second - first);
        const double end = 3 * (after.position - second), a = c - 2 * middle + end, b = middle - c;
        const double q = -(b + std::copysign(std::sqrt(std::max(b * b - a * c, 0.0)), b));
        for (double u : {q / a, c / q}) {
            u = std::isnan(u) ? 0.0 : std::min(std::max(u, 0.0), 1.0);
            const double turn = before.position + u * (c + u * (b + u * (a / 3)));
            if (!(turn >= low && turn <= high)) {
                return false;
            }
        }
        return true;
    }

    const Constants constants;
    const std::vector<Joint> joints;
    const size_t count;
};

struct Buffer {
    Py_buffer view{};
    ~Buffer() {
        if (view.obj != nullptr) {
            PyBuffer_Release(&view);
        }
    }
    double* doubles() const { return static_cast<double*>(view.buf); }
    bool holds(size_t bytes) const { return static_cast<size_t>(view.len) == bytes; }
};

PyObject* follow(PyObject*, PyObject* arguments) {
    Buffer limits, start, times, targets, states, ending;
    Constants given{};
    if (!PyArg_ParseTuple(arguments, "y*y*y*y*w*w*ddddi", &limits.view, &start.view, &times.view, &targets.view,
                          &states.view, &ending.view, &given.tolerance, &given.overtaken, &given.stands,
                          &given.most_extra_points, &given.rounds)) {
        return nullptr;
    }
    const size_t joints = limits.view.len / sizeof(Joint), points = times.view.len / sizeof(double);
    const size_t rows = joints * 3 * sizeof(double);
    if (points == 0 || joints == 0 || !limits.holds(joints * sizeof(Joint)) || !start.holds(rows) ||
        !times.holds(points * sizeof(double)) || !targets.holds(points * rows) || !states.holds(points * rows) ||
        !ending.holds(points * joints)) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes than limits [J, 9], start [3, J], times [K], targets "
                                          "and states [K, 3, J], ending [K, J]");
        return nullptr;
    }
    const auto* each = reinterpret_cast<const Joint*>(limits.view.buf);
    bool is_done = false;
    try {
        Chain chain(given, std::vector<Joint>(each, each + joints));
        is_done = chain.follow(start.doubles(), times.doubles(), targets.doubles(), points, states.doubles(),
                               static_cast<uint8_t*>(ending.view.buf));
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
    return PyBool_FromLong(is_done);
}

PyMethodDef methods[] = {
    {"follow", follow, METH_VARARGS, "Write the states of Limiter.follow; return whether the points given do."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_chain", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__chain() { return PyModule_Create(&module); }
