# SPDX-License-Identifier: Apache-2.0
"""A policy as a Ray Serve deployment: replicas come and go with the load, and nodes ask as they ask `xvla serve`.

pip install 'xvla_ros[serve]' 'ray[serve]'
XVLA_CHECKPOINT=my_checkpoint XVLA_GPUS=1 serve run examples.ray_serve:app     # ws://127.0.0.1:8000

Nothing is kept between two chunks, so any replica answers any ask: a client's hello goes along with each, and a
replica reads it once. Ray listens on loopback; who may ask from elsewhere is for what stands before it (a proxy with
TLS and a token, a tunnel): Ray has neither.
"""

import os
import time
from functools import partial

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from ray import serve

from xvla_ros.errors import RequestError
from xvla_ros.serving import fronts, protocol
from xvla_ros.serving.service import PolicyService

CHECKPOINT, GPUS = os.environ.get("XVLA_CHECKPOINT", ""), float(os.environ.get("XVLA_GPUS", "0"))
MOST = int(os.environ.get("XVLA_REPLICAS", "4"))
KEPT = 256  # clients whose hello a replica remembers

http = FastAPI()


@serve.deployment(
    ray_actor_options={"num_gpus": GPUS},
    max_ongoing_requests=32,  # of one replica, which batches them
    autoscaling_config={"min_replicas": 1, "max_replicas": MOST, "target_ongoing_requests": 8},
)
class Replica:
    """One policy and its engine."""

    def __init__(self, checkpoint: str = CHECKPOINT) -> None:
        from xvla_ros.control.policy_source import load_policy
        from xvla_ros.model.runtime.fast import warm_up
        from xvla_ros.resources import policy_dir

        policy = load_policy({}, checkpoint or str(policy_dir()), device="cuda" if GPUS else "cpu")
        for record in policy.robots.values():
            warm_up(policy, [policy.blank(record.embodiment)])
        self._service = PolicyService(policy, {}, digest=policy.digest)
        self._service.start()
        self._sessions: dict[bytes, tuple[fronts.NativeSession, dict]] = {}

    async def welcome(self, hello: bytes, owner: str) -> tuple[bytes, bool]:
        """Return what answers a hello, and whether its client may go on."""
        try:
            _, said = await self._session(hello, owner)
        except RequestError as error:
            return fronts.native_error(None, error), False
        return protocol.pack(said), True

    async def answer(self, hello: bytes, data: bytes, owner: str) -> bytes:
        """Return what answers an ask of the client that said this hello."""
        begun, number = time.monotonic(), None
        try:
            session, _ = await self._session(hello, owner)
            message = protocol.unpack(data)
            if message.get("type") == "load":
                return protocol.pack({"type": "load", **self._service.load()})
            number = message["id"] if type(message.get("id")) is int else None
            number, deadline, questions = fronts.native_questions(self._service, session, message)
            answers = await self._service.answer(list(questions), owner, deadline)
        except RequestError as error:
            return fronts.native_error(number, error)
        return fronts.native_answer(number, answers, (time.monotonic() - begun) * 1e3, self._service.load())

    async def _session(self, hello: bytes, owner: str) -> tuple[fronts.NativeSession, dict]:
        if hello not in self._sessions:
            read = partial(fronts.native_hello, self._service, protocol.unpack(hello))
            self._sessions[hello] = await self._service.beside(read, owner)
            if len(self._sessions) > KEPT:
                self._sessions.pop(next(iter(self._sessions)))
        return self._sessions[hello]


@serve.deployment
@serve.ingress(http)
class Front:
    """Takes connections, and hands each ask to the replica with the least to do."""

    def __init__(self, replicas) -> None:
        self._replicas = replicas

    @http.websocket(protocol.PATH)
    async def ask(self, socket: WebSocket) -> None:
        await socket.accept()
        owner = socket.client.host if socket.client else ""
        try:
            hello = await socket.receive_bytes()
            said, welcome = await self._replicas.welcome.remote(hello, owner)
            await socket.send_bytes(said)
            while welcome:
                data = await socket.receive_bytes()
                await socket.send_bytes(await self._replicas.answer.remote(hello, data, owner))
        except WebSocketDisconnect:
            return
        await socket.close()


app = Front.bind(Replica.bind())
