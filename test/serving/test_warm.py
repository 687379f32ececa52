# SPDX-License-Identifier: Apache-2.0
"""What a server does before its first client comes."""

from types import SimpleNamespace

from served_policy import PAIR

from xvla_ros.commands.serve import Serve
from xvla_ros.serving.queue import MAX_BATCH


def test_on_a_gpu_every_batch_that_may_come_is_made_ready(policy, profiles, monkeypatch):
    """A size that nothing is ready for runs eagerly, and a server's batches are of any size."""
    ready = set()
    made = policy.like(policy.network)
    made.outline = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    monkeypatch.setattr("xvla_ros.control.policy_source.load_policy", lambda *_, **__: made)
    monkeypatch.setattr("xvla_ros.model.runtime.fast.get_ready", lambda _, blanks: ready.add(len(blanks)))
    monkeypatch.setattr("xvla_ros.model.runtime.fast.warm_up", lambda _, blanks: ready.add(len(blanks)))
    Serve().policy({PAIR: profiles[PAIR]})
    assert ready == {1, MAX_BATCH}
