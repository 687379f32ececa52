# SPDX-License-Identifier: Apache-2.0
"""A server of our protocol without a policy, that says what a test tells it."""

import threading
from contextlib import closing, contextmanager, suppress

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from xvla_ros.errors import RequestError
from xvla_ros.serving import protocol
from xvla_ros.serving.fronts import native_error

METADATA = {
    "type": "welcome", "protocol": 1, "checkpoint": "one", "chunk_size": 2, "action_mode": "auto", "views": 1,
    "domains": 30, "trained_domains": [19], "robots": {}, "admitted": {}, "computing": {}, "inference_ms": 1.0,
    "queue_ms": 0.0, "waiting": 0,
}  # fmt: skip


def chunk_for(seen, dt=0.1, offset=0.1, width=12, domain_id=19, mode="joint"):
    """What a server in order answers to an observation as it was asked."""
    return {
        "robot": seen["robot"], "domain_id": domain_id, "action_mode": mode, "instruction": seen["instruction"],
        "stamp": seen["stamp"], "times": offset + dt * np.arange(2), "actions": np.zeros((2, width), "<f4"),
        "inference_ms": 1.0, "seed": 0,
    }  # fmt: skip


@contextmanager
def scripted(answer, metadata=METADATA, port=0):
    """Serve: ``answer`` makes the chunks of an ask, or raises RequestError; yields the address."""

    def serve_one(socket):
        with suppress(ConnectionClosed):
            socket.recv()
            socket.send(protocol.pack(metadata() if callable(metadata) else metadata))
            while True:
                said = protocol.unpack(socket.recv())
                if said["type"] == "load":
                    socket.send(protocol.pack({"type": "load", "inference_ms": 1.0, "queue_ms": 0.0, "waiting": 0}))
                    continue
                try:
                    chunks = [answer(seen) for seen in said["observations"]]
                except RequestError as error:
                    socket.send(native_error(said["id"], error))
                    continue
                socket.send(protocol.pack({"type": "chunks", "id": said["id"], "chunks": chunks}))

    with serve(serve_one, "127.0.0.1", port, compression=None, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with closing(server.socket):
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
            server.shutdown()
