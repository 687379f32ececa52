# SPDX-License-Identifier: Apache-2.0
"""A policy behind a server that listens in a thread."""

import asyncio
import base64
import threading
from contextlib import contextmanager

from xvla_ros.serving.access import Access
from xvla_ros.serving.server import PolicyServer
from xvla_ros.serving.service import PolicyService

PAIR, ARM = "so101_bimanual", "widowx"
DEADLINE = 120.0  # s, only ends a hang


class Served:
    """A server that listens in a thread: ``url``, ``http``, and the parts a test looks into."""

    def __init__(self, service, access):
        self.service, self.server = service, PolicyServer(service, access)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self.server.start())
        scheme = "wss" if access.certificate else "ws"
        self.address = self.server.address
        self.url, self.http = f"{scheme}://{self.address}", f"{scheme.replace('ws', 'http')}://{self.address}"

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def stop(self):
        self._run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


def act_body(seen):
    """What is posted to ``/act`` for an observation."""
    body = {"domain_id": seen.embodiment.domain_id, "proprio": seen.state.tolist(), "language_instruction": "go"}
    for number, image in enumerate(seen.images.values()):
        written = {"__numpy__": base64.b64encode(image.tobytes()).decode(), "dtype": image.dtype.str}
        body[f"image{number}"] = written | {"shape": list(image.shape)}
    return body


@contextmanager
def serving(policy, profiles, **access):
    served = Served(PolicyService(policy, profiles, "1.2.3"), Access(**{"port": 0, **access}))
    try:
        yield served
    finally:
        served.stop()
