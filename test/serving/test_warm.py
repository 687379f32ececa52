# SPDX-License-Identifier: Apache-2.0
"""What a server does before its first client comes."""

from types import SimpleNamespace

import pytest
from served_policy import ARM, PAIR

from xvla_ros.commands.serve import Serve
from xvla_ros.resources import policy_dir
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


@pytest.mark.parametrize(
    ("options", "source", "has_digest"),
    [({"dtype": "int8"}, str(policy_dir()), True), ({"robots": ARM, "dtype": "int8"}, "random weights", False)],
)
def test_whatever_can_be_served_starts_and_is_named_as_its_files_are(monkeypatch, options, source, has_digest):
    """By the digest servers of a fleet are compared, and by the source a server knows the policy that ships."""
    said = []

    async def serve(server, access, source):
        said.append(server._service.metadata())

    monkeypatch.setattr("xvla_ros.commands.serve._serve", serve)
    monkeypatch.setattr("xvla_ros.commands.show_log", lambda room: None)
    if not has_digest:
        monkeypatch.setattr("xvla_ros.control.policy_source.policy_dir", lambda: None)
    assert Serve(**options).run() == 0
    ((found, digest),) = [(each["checkpoint"], each["digest"]) for each in said]
    assert (found, bool(digest), said[0]["computing"]["dtype"]) == (source, has_digest, "int8")
