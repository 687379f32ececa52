"""The fastest exact way to run a policy on the device it is on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from ..data import Observation
from ..network.xvla import XvlaNetwork
from ..policy import Policy
from .capture import Capture, CudaGraphs, compiled, with_compiled_blocks
from .onednn import WORTHWHILE, on_onednn, onednn_gain
from .runner import Log, Runner, Way

CHOICES = ("auto", "on", "off")


def accelerate(policy: Policy, *, compile: str = "auto", log: Log | None = None) -> Policy:
    """Give a policy the fastest runner for its device; call ``warm_up`` before it is used.

    On a GPU whole chunks become CUDA graphs of compiled blocks. On a CPU linear layers go through oneDNN where that is
    faster. Compiling for a CPU takes half a minute or more and a C++ compiler, and gained nothing beside oneDNN where
    it was tried, so there it is done only where it is asked for.

    Args:
        policy: whose network is shared with what is returned; it may be saved, but not trained on.
        compile: ``on``, ``off`` or ``auto``; off leaves everything as it is.
        log: takes lines that say what runs, and why nothing faster.

    Returns:
        A policy that answers alike, to the rounding of its precision.

    Raises:
        ValueError: if ``compile`` is none of the three.
    """
    if compile not in CHOICES:
        raise ValueError(f"compile is {compile!r}, expected {', '.join(CHOICES)}")
    log = log or logging.getLogger(__name__).info
    made = policy.like(policy.network)
    if compile != "off":
        made.runner = Runner(policy.network, ways(policy.network, compile), log)
    log(f"the policy runs {made.runner.description}")
    return made


def ways(network: XvlaNetwork, compile: str) -> list[Way]:
    """What to try on the network's device, fastest first."""
    if network.device.type == "cuda":
        capture = Capture(CudaGraphs(network.device))
        return [
            Way("in CUDA graphs of compiled blocks", with_compiled_blocks(network), capture),
            Way("in CUDA graphs", network, capture),
            Way("eagerly", network),
        ]
    found = [_on_cpu(network)] if network.device.type == "cpu" else [Way("eagerly", network)]
    if compile == "on":
        found.insert(0, Way("with compiled blocks", with_compiled_blocks(network), compiled))
    return found


def _on_cpu(network: XvlaNetwork) -> Way:
    gain, reason = onednn_gain(network)
    if gain < WORTHWHILE:
        return Way(f"eagerly ({reason or f'oneDNN is {gain:.2f} times as fast here'})", network)
    return Way(f"on oneDNN ({gain:.1f} times as fast here)", on_onednn(network))


def warm_up(policy: Policy, observations: Sequence[Observation], *, steps: int | None = None) -> None:
    """Get ready for chunks of any of the observations' robots together and answer one, so that no later one waits.

    Args:
        policy: from ``accelerate`` or not.
        observations: one of every robot, with all its cameras.
        steps: as for ``Policy.predict``.
    """
    get_ready(policy, observations, steps=steps)
    policy.predict(observations, steps=steps, seed=0)


def get_ready(policy: Policy, observations: Sequence[Observation], *, steps: int | None = None) -> None:
    """``warm_up`` without the chunk: what is compiled and captured, for every shape."""
    for (_, count), rows in policy.groups(observations, steps).items():
        for chosen in _of_each_shape([observations[row] for row in rows]):
            modes = [policy.action_mode(each.embodiment) for each in chosen]
            policy.runner.get_ready(policy.prepare(chosen), modes, count)


def _of_each_shape(observations: Sequence[Observation]) -> Iterator[list[Observation]]:
    """Some of the observations for every number of robots and images that some of them can have."""
    found: dict[tuple[int, int], list[Observation]] = {(0, 0): []}
    for each in observations:
        for (robots, images), chosen in list(found.items()):
            found.setdefault((robots + 1, images + len(each.images)), [*chosen, each])
    del found[0, 0]
    yield from (found[shape] for shape in sorted(found, reverse=True))
