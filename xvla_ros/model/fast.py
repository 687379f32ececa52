"""The fastest exact way to run a policy on the device it is on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .onednn import WORTHWHILE, on_onednn, onednn_gain
from .policy import Policy
from .runner import FastRunner, Runner

CHOICES = ("auto", "on", "off")
Log = Callable[[str], object]


def accelerate(policy: Policy, *, compile: str = "auto", log: Log | None = None) -> Policy:
    """Give a policy the fastest runner for its device.

    Args:
        policy: whose network is shared with what is returned; it may be saved, but not trained on.
        compile: ``on`` and ``off`` as said, ``auto`` where it wins; off also stands for no other change.
        log: takes a line that says what will run, and why nothing faster.

    Returns:
        A policy that answers alike, to the rounding of its precision.

    Raises:
        ValueError: if ``compile`` is none of the three.
    """
    if compile not in CHOICES:
        raise ValueError(f"compile is {compile!r}, expected {', '.join(CHOICES)}")
    made = Policy(
        policy.network, policy.processor, robots=policy.robots, training=policy.training, source=policy.source
    )
    made.runner = _runner(policy, compile)
    (log or logging.getLogger(__name__).info)(f"policy runs {made.runner.description}")
    return made


def _runner(policy: Policy, compile: str) -> Runner:
    network = policy.network
    if compile == "off":
        return Runner(network)
    gain, reason = onednn_gain(network)
    if gain < WORTHWHILE:
        return FastRunner(network, network, f"eager ({reason or f'oneDNN is {gain:.2f} × as fast'})")
    return FastRunner(network, on_onednn(network), f"on oneDNN, {gain:.1f} × as fast as MKL here")
