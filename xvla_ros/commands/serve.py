# SPDX-License-Identifier: Apache-2.0
"""``xvla serve``: the policy behind a socket, for robots' computers without a GPU; needs no ROS."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from xvla_ros.commands.options import Device, Dtype, Listening, Option
from xvla_ros.errors import SetupError

if TYPE_CHECKING:
    from xvla_ros.model.policy import Policy
    from xvla_ros.robots import Profile
    from xvla_ros.serving.access import Access
    from xvla_ros.serving.server import PolicyServer

NEEDED = ("aiohttp", "msgpack", "prometheus_client", "websockets")


@dataclass(frozen=True, kw_only=True)
class Serve(Listening):
    """Serve a policy on one port: to nodes and programs of this package, openpi's clients, and X-VLA's (POST /act).

    examples:
      xvla serve
      xvla serve --checkpoint 2toINF/X-VLA-WidowX --robots widowx --device cuda
      xvla serve --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem
    """

    checkpoint: Annotated[
        str | None, "folder or hub id of the checkpoint (default: the robots' checkpoint, else the shipped one)"
    ] = None
    robots: Annotated[
        str, Option(metavar="A,B"),
        "robots that clients may name: names or files of profiles, separated by commas (default: the checkpoint's "
            "robots)",
    ] = ""  # fmt: skip
    device: Device = "cpu"
    dtype: Dtype = ""

    def run(self) -> int:
        """Serve until Ctrl-C or SIGTERM."""
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise SetupError(f"a server needs {', '.join(missing)}; install xvla_ros[serve]")
        from xvla_ros.commands import show_log
        from xvla_ros.serving.server import PolicyServer
        from xvla_ros.serving.service import PolicyService

        show_log("serving")
        access = self.access()
        access.require_safe()
        profiles = self._profiles()
        policy = self.policy(profiles)
        server = PolicyServer(PolicyService(policy, profiles, _version(), policy.digest), access)
        asyncio.run(_serve(server, access, policy.source))
        return 0

    def _profiles(self) -> dict[str, Profile]:
        from xvla_ros.evaluation.graph import choose_profiles

        return {profile.name: profile for profile in choose_profiles(self.robots)} if self.robots else {}

    def policy(self, profiles: dict[str, Profile]) -> Policy:
        """Load what is served, ready for passes of any size."""
        from xvla_ros.control.policy_source import load_policy
        from xvla_ros.model.runtime.fast import get_ready, warm_up
        from xvla_ros.resources import policy_dir
        from xvla_ros.serving.queue import MAX_BATCH

        checkpoint = self.checkpoint or ("" if profiles else str(policy_dir() or ""))
        if not checkpoint and not profiles:
            raise SetupError("this installation has no shipped policy; name one with --checkpoint, or --robots")
        policy = load_policy(profiles, checkpoint, device=self.device, dtype=self.dtype, log=_say)
        robots = [profile.embodiment() for profile in profiles.values()]
        for embodiment in robots or [record.embodiment for record in policy.robots.values()]:
            blank = policy.blank(embodiment)
            if policy.outline.device.type != "cpu":  # there a batch of a size that nothing is ready for runs eagerly
                get_ready(policy, [blank] * MAX_BATCH)
            warm_up(policy, [blank])
        return policy


def _say(line: str) -> None:
    print(line, flush=True)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xvla_ros")
    except PackageNotFoundError:
        return ""


async def _serve(server: PolicyServer, access: Access, source: str) -> None:
    ended = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    await server.start()
    try:
        scheme = "ws" if access.certificate is None else "wss"
        _say(f"serving {source} on {scheme}://{server.address}; Ctrl-C stops it")
        if access.insecure and not access.token and access.client_ca is None:
            _say("warning: --insecure: everyone who can reach this port can use the policy")
        elif access.token and access.certificate is None:
            _say("warning: without TLS others on the network can read the token and the images")
        await ended.wait()
    finally:
        await server.stop()
    _say("stopped")
