# SPDX-License-Identifier: Apache-2.0
"""What comes over the network is what ``Policy.predict`` says, in each of the three protocols."""

import base64
import copy
import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from served_policy import ARM, DEADLINE, PAIR, serving
from websockets.sync.client import connect

from xvla_ros.errors import RequestError
from xvla_ros.model.checkpoint.record import RobotRecord
from xvla_ros.model.inputs.normalisers import Statistics
from xvla_ros.model.random_policy import random_policy
from xvla_ros.serving import Client
from xvla_ros.serving.protocol import decode_picture, encode_picture, observation_message, pack
from xvla_ros.types import Embodiment, Observation, Prefix


def near(actions, expected):
    np.testing.assert_allclose(actions, expected, atol=1e-5 * np.abs(expected).max())


def json_numpy(values):
    """An array as json_numpy.dumps writes it, from the facts of its format."""
    values = np.ascontiguousarray(values)
    packed = base64.b64encode(values.tobytes()).decode()
    return json.dumps({"__numpy__": packed, "dtype": values.dtype.str, "shape": values.shape})


def post(url, message):
    request = urllib.request.Request(f"{url}/act", json.dumps(message).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_our_client_gets_what_predict_says(served, policy, look):
    for robot in (PAIR, ARM):
        seen = look(robot)
        with Client(served.url, robot=robot, quality=None) as client:
            chunk = client.ask(seen.images, seen.state, seen.instruction, stamp=seen.stamp, seed=3)
        (expected,) = policy.predict([seen], seed=3)
        near(chunk.actions, expected.actions)
        np.testing.assert_array_equal(chunk.times, expected.times)
        fields = ("robot", "domain_id", "action_mode", "instruction", "stamp", "seed")
        assert [getattr(chunk, name) for name in fields] == [getattr(expected, name) for name in fields]


@pytest.mark.parametrize("robot", [PAIR, ARM])
def test_a_robot_that_states_no_image_pipeline_has_that_of_its_training(served, policy, look, robot):
    """Of one policy, whose robots have different ones."""
    seen = look(robot)
    plain = replace(seen.embodiment, image_pipeline="")
    (expected,) = policy.predict([seen], seed=3)
    with Client(served.url, embodiment=plain, quality=None) as client:
        chunk = client.ask(seen.images, seen.state, seen.instruction, stamp=seen.stamp, seed=3)
    near(chunk.actions, expected.actions)
    near(policy.predict([replace(seen, embodiment=plain)], seed=3)[0].actions, expected.actions)


def test_prefix_steps_and_seed_are_each_clients_own(served, policy, look):
    seen = look()
    (before,) = policy.predict([seen], seed=1)
    weights = np.zeros(policy.chunk_size, np.float32)
    weights[:5] = 1.0
    prefix = Prefix(before.actions, weights)
    with Client(served.url, robot=PAIR, quality=None) as client:
        chunk = client.ask(seen.images, seen.state, "go", stamp=5, seed=9, steps=3, prefix=prefix)
    asked = replace(seen, stamp=5, instruction="go")
    (expected,) = policy.predict([asked], seed=9, steps=3, prefix=[prefix])
    near(chunk.actions, expected.actions)
    arms = np.delete(np.arange(12), (5, 11))  # a gripper's logit is held, which its probability shows less exactly
    near(chunk.actions[:5, arms], before.actions[:5, arms])


@pytest.mark.parametrize("by_profile", [True, False])
def test_a_state_that_nothing_normalises_has_the_width_of_its_robot(policy, profiles, look, by_profile):
    """A robot of the record has that of its profile, where this comes with the record."""
    plain = policy.like(policy.network)
    plain.processor = copy.copy(policy.processor)
    plain.processor.statistics = {PAIR: Statistics()}
    record = RobotRecord(look().embodiment, Statistics(), profiles[PAIR].to_mapping())
    plain.robots = {PAIR: record}
    with (
        serving(plain, {PAIR: profiles[PAIR]} if by_profile else {}) as served,
        Client(served.url, robot=PAIR) as client,
    ):
        assert client.metadata["robots"][PAIR]["state_width"] == 12
        for width in (0, 11, 13, 20):
            with pytest.raises(RequestError, match=rf"state has shape \[{width}\], expected \[12\]"):
                client.ask(look().images, np.zeros(width), "go")
        assert client.ask(look().images, np.zeros(12), "go").robot == PAIR


def test_without_a_seed_each_answer_has_a_noise_of_its_own(served, look):
    seen = look()
    with Client(served.url, robot=PAIR) as client:
        one, other = (client.ask(seen.images, seen.state, seen.instruction, stamp=1) for _ in range(2))
    assert one.seed != other.seed
    assert np.abs(one.actions - other.actions).max() > 0


def test_a_jpeg_costs_little_and_raw_costs_nothing(served, policy, look):
    waves = [np.sin(np.add.outer(np.arange(64), np.arange(64)) / period) for period in (7, 11, 17)]
    smooth = np.rint(127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
    seen = replace(look(), images=dict.fromkeys(look().images, smooth))
    encoded = encode_picture(smooth)
    assert len(encoded) < smooth.nbytes / 3
    error = np.abs(decode_picture(encoded, "it").astype(int) - smooth)
    assert 0 < error.mean() < 2 and error.max() < 12, "levels of 255"
    (expected,) = policy.predict(
        [replace(seen, images=dict.fromkeys(seen.images, decode_picture(encoded, "it")))], seed=1
    )
    with Client(served.url, robot=PAIR) as client:
        chunk = client.ask(seen.images, seen.state, seen.instruction, stamp=seen.stamp, seed=1)
        as_given = client.ask(
            dict.fromkeys(seen.images, encoded), seen.state, seen.instruction, stamp=seen.stamp, seed=1
        )
    near(chunk.actions, expected.actions)
    near(as_given.actions, expected.actions)


def test_act_of_upstream(served, policy, look):
    for robot in (PAIR, ARM):
        seen = replace(look(robot), stamp=0)
        images = {f"image{i}": json_numpy(seen.images[slot]) for i, slot in enumerate(seen.embodiment.slots)}
        answer = post(
            served.http,
            {
                "proprio": json_numpy(seen.state.astype(np.float64)),
                "language_instruction": seen.instruction,
                **images,
                "domain_id": seen.embodiment.domain_id,
                "steps": 5,
                "seed": 4,
            },
        )
        (expected,) = policy.predict([seen], seed=4, steps=5)
        near(np.array(answer["action"]), expected.actions)


def openpi(values):
    """An array as openpi's clients pack it, from the facts of their format."""
    return {b"__ndarray__": True, b"data": values.tobytes(), b"dtype": values.dtype.str, b"shape": values.shape}


def test_openpi_over_its_websocket(served, policy, look):
    seen = replace(look(), stamp=0)
    with connect(served.url, compression=None, max_size=None) as socket:
        metadata = msgpack.unpackb(socket.recv())
        assert PAIR in metadata["robots"]
        message = {f"observation/{slot}": openpi(image) for slot, image in seen.images.items()}
        message |= {"observation/state": openpi(seen.state), "prompt": seen.instruction, "robot": PAIR, "seed": 6}
        socket.send(msgpack.packb(message))
        answer = msgpack.unpackb(socket.recv())
        actions = answer["actions"]
        found = np.frombuffer(actions[b"data"], actions[b"dtype"]).reshape(actions[b"shape"])
        assert answer["server_timing"]["infer_ms"] > 0
        socket.send(msgpack.packb({"robot": PAIR, "prompt": "x", "state": openpi(np.zeros(3, np.float32))}))
        assert "no image of front" in socket.recv(), "an error is a text"
        for wrong, said in (
            ({"prompt": None}, "prompt is nothing; expected a text"),
            ({"task": message["prompt"]}, "prompt is nothing; expected a text"),
            ({"domain_id": 0}, "robot is 'so101_bimanual', which is not of domain 0; expected widowx"),
            ({"domain_id": 19, "robot": "so101_bimanul"}, "which is not of domain 19; expected so101_bimanual"),
            ({"domain_id": 19, "robot": None}, "robot is nothing; expected a text"),
        ):
            other = message | wrong
            if "task" in wrong:
                del other["prompt"]
            socket.send(msgpack.packb(other))
            assert said in socket.recv()
        socket.send(msgpack.packb(message | {"domain_id": 19}))
        assert b"actions" in socket.recv()
    (expected,) = policy.predict([seen], seed=6)
    near(found, expected.actions)


# a checkpoint whose files know no robot: two views at their places, letterboxed, in 7 steps
UNKNOWN = Embodiment("domain_3", 3, "joint", ("top", "wrist"), 0.1, 0.1, 7, "letterbox")
WIDTH = 14


@pytest.mark.parametrize("stated", ["", "letterbox"])
def test_a_robot_that_its_client_describes_to_a_checkpoint_of_no_robot(pictures, stated):
    """Its views lie at the checkpoint's places, and its images are prepared as the checkpoint's were."""
    described = replace(UNKNOWN, robot="mine", image_pipeline=stated)
    both = dict(zip(UNKNOWN.slots, pictures, strict=True))
    state = np.zeros(WIDTH)
    with without_robots(UNKNOWN.slots) as (served, expected):
        with Client(served.url, embodiment=described, quality=None) as client:
            chunk = client.ask(both, state, "go", stamp=0, seed=4)
        near(chunk.actions, expected(both, described))
        with pytest.raises(RequestError, match="slots of mine are wrist, top; expected top, wrist, as in"):
            Client(served.url, embodiment=replace(described, slots=("wrist", "top")))


@contextmanager
def without_robots(view_names=()):
    """A server of a policy that knows no robot; yields it and what the policy itself says of an observation."""
    none, one = {UNKNOWN.robot: np.zeros(WIDTH)}, {UNKNOWN.robot: np.ones(WIDTH)}
    policy = random_policy([UNKNOWN], state_mean=none, state_std=one, action_mean=none, action_std=one)
    policy.robots, policy.view_names = {}, view_names

    def expected(views, robot=UNKNOWN):
        slots = {"image0": "top", "image1": "wrist"}
        images = {slots.get(name, name): picture for name, picture in views.items()}
        seen = Observation(replace(robot, image_pipeline="letterbox"), 0, images, np.zeros(WIDTH, np.float32), "go")
        return policy.predict([seen], seed=4)[0].actions

    with serving(policy, {}) as served:
        yield served, expected


def by_act(served, views):
    """The answer to ``POST /act``, where views go by their places; the text of the refusal where there is none."""
    message = {"proprio": [0.0] * WIDTH, "language_instruction": "go", "domain_id": 3, "seed": 4}
    try:
        return post(served.http, message | {name: json_numpy(each) for name, each in views.items()})["action"]
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]["detail"]


def by_openpi(served, views):
    """The answer to an openpi client; the text of the refusal where there is none."""
    message = {"observation/state": openpi(np.zeros(WIDTH, np.float32)), "prompt": "go", "domain_id": 3, "seed": 4}
    message |= {f"observation/{name}": openpi(each) for name, each in views.items()}
    with connect(served.url, compression=None, max_size=None) as socket:
        socket.recv()
        socket.send(msgpack.packb(message))
        answer = socket.recv()
    if isinstance(answer, str):
        return answer
    actions = msgpack.unpackb(answer)["actions"]
    return np.frombuffer(actions[b"data"], actions[b"dtype"]).reshape(actions[b"shape"])


@pytest.fixture
def pictures():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (48, 96, 3), dtype=np.uint8) for _ in range(2)]


@pytest.mark.parametrize(
    ("ask", "view_names", "names"),
    [
        (by_act, (), ("image0", "image1")),
        (by_act, ("top", "wrist"), ("image0", "image1")),
        (by_openpi, (), ("image0", "image1")),
        (by_openpi, ("top", "wrist"), ("top", "wrist")),
    ],
)
def test_a_domain_alone_is_driven_as_the_checkpoint_says(pictures, ask, view_names, names):
    """Its image pipeline, its steps, and each view at its place, in whatever order they come."""
    both = dict(zip(names, pictures, strict=True))
    turned = dict(reversed(both.items()))
    first = {names[0]: pictures[0]}
    with without_robots(view_names) as (served, expected):
        for views in (both, turned, first):
            near(ask(served, views), expected(views))


@pytest.mark.parametrize(
    ("ask", "view_names", "sent", "said"),
    [
        (by_act, ("top", "wrist"), ("image1",), "no image0: domain 3 is 'domain_3'; expected image0 = top"),
        (by_act, (), ("image0", "image2"), "image2 is no view of its robot: domain 3 is 'domain_3'; expected im"),
        (by_openpi, (), ("image1",), "no image of image0; expected image0"),
        (by_openpi, (), ("image0", "wrist_image"), "wrist_image: robot 'domain_3' has no such view; expected image0"),
        (by_openpi, ("top", "wrist"), ("top", "image1"), "image1: robot 'domain_3' has no such view; expected top"),
    ],
)
def test_a_picture_without_a_place_is_refused_and_so_is_none_at_the_first(pictures, ask, view_names, sent, said):
    with without_robots(view_names) as (served, _):
        assert said in ask(served, dict(zip(sent, pictures, strict=False)))


def test_a_domain_that_robots_share_is_that_of_the_one_who_is_named(served, look):
    served.service.robots["twin"] = served.service.robots[PAIR]
    seen = replace(look(), stamp=0)
    message = {slot: openpi(image) for slot, image in seen.images.items()}
    message |= {"state": openpi(seen.state), "prompt": "go", "domain_id": seen.embodiment.domain_id}
    with connect(served.url, compression=None, max_size=None) as socket:
        socket.recv()
        socket.send(msgpack.packb(message))
        assert "domain_id is 19, which so101_bimanual, twin share; expected that of one robot" in socket.recv()
        socket.send(msgpack.packb(message | {"robot": PAIR}))
        assert b"actions" in socket.recv()


def test_clients_that_wait_together_share_a_pass_and_each_gets_its_own(served, policy, look, monkeypatch):
    entered, may_go, sizes = threading.Event(), threading.Event(), []
    inner = policy.predict

    def predict(observations, **settings):
        sizes.append(len(observations))
        if len(sizes) == 1:
            entered.set()
            assert may_go.wait(DEADLINE)
        return inner(observations, **settings)

    monkeypatch.setattr(policy, "predict", predict)
    seen = [look(level=level) for level in range(6)]
    answers = {}

    def ask(number):
        with Client(served.url, robot=PAIR, quality=None, timeout=2 * DEADLINE) as client:
            one = seen[number]
            answers[number] = client.ask(one.images, one.state, one.instruction, stamp=one.stamp, seed=number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    threads[0].start()
    assert entered.wait(DEADLINE)
    for thread in threads[1:]:
        thread.start()
    while served.service.waiting < 5:
        may_go.wait(0.01)
    may_go.set()
    for thread in threads:
        thread.join()
    assert sizes == [1, 5]
    for number, one in enumerate(seen):
        (expected,) = inner([one], seed=number)
        near(answers[number].actions, expected.actions)


@pytest.mark.parametrize("path", ["", "/xvla"])
def test_a_ping_is_answered_while_an_answer_is_computed(served, policy, look, monkeypatch, path):
    """A client leaves a server that answers no ping, however long it would wait for the answer."""
    entered, may_go, inner = threading.Event(), threading.Event(), policy.predict

    def predict(observations, **settings):
        entered.set()
        assert may_go.wait(2 * DEADLINE)
        return inner(observations, **settings)

    monkeypatch.setattr(policy, "predict", predict)
    seen = look()
    if path:
        ask = pack({"type": "ask", "id": 1, "observations": [observation_message(seen)]})
    else:
        ask = msgpack.packb(
            {slot: openpi(image) for slot, image in seen.images.items()}
            | {"state": openpi(seen.state), "prompt": "go", "robot": PAIR}
        )
    with connect(f"{served.url}{path}", compression=None, max_size=None, ping_interval=None) as socket:
        if path:
            socket.send(pack({"type": "hello", "protocol": 1}))
        socket.recv()
        socket.send(ask)
        assert entered.wait(DEADLINE)
        try:
            assert socket.ping().wait(DEADLINE)
        finally:
            may_go.set()
        assert b"actions" in socket.recv(timeout=DEADLINE)


@pytest.mark.parametrize("page", ["healthz", "metadata", "metrics"])
def test_pages(served, look, page):
    seen = look()
    with Client(served.url, robot=PAIR) as client:
        client.ask(seen.images, seen.state, seen.instruction)
        with urllib.request.urlopen(f"{served.http}/{page}") as answer:
            text = answer.read().decode()
    if page == "healthz":
        assert text == "OK"
    elif page == "metadata":
        said = json.loads(text)
        assert (said["protocol"], said["version"], said["checkpoint"]) == (1, "1.2.3", "random weights")
        assert said["robots"][PAIR]["views"] == ["front", "left_wrist", "right_wrist"]
        assert said["robots"][PAIR]["state_width"] == 12
    else:
        assert 'xvla_requests_total{outcome="ok",protocol="xvla"} 1.0' in text
        assert "xvla_connections 1.0" in text
        assert "xvla_batch_size_count 1.0" in text
