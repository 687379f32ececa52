# SPDX-License-Identifier: Apache-2.0
"""A policy on other machines, in the place of a loaded one: what breaks, stalls, comes back, and who is asked."""

import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from fuzz import at_once
from scripted_server import scripted
from served_policy import ARM, DEADLINE, PAIR, Served, serving
from websockets.exceptions import ConnectionClosedError

from xvla_ros.errors import RequestError, SetupError, UnreachableError
from xvla_ros.serving import remote
from xvla_ros.serving.access import Access
from xvla_ros.serving.client import Link, url_of
from xvla_ros.serving.protocol import OVERLOADED, decode_picture, encode_picture
from xvla_ros.serving.remote import Credentials, RemotePolicy, trained_at
from xvla_ros.serving.service import PolicyService
from xvla_ros.types import Prefix

LONG = "pick up the red cube with the left arm and put it into the bowl, then go back to where you were before"
TOKEN = "a long enough secret, of 40 characters.."


def within(profile, seconds):
    """The profile with another ``inference_timeout``."""
    timing = profile.timing.model_copy(update={"inference_timeout": seconds})
    return profile.model_copy(update={"timing": timing})


@pytest.fixture
def reach(profiles):
    """Connects: reach(servers, **settings); patient, as the machine may be busy; closed after the test."""
    made, patient = [], {name: within(profile, DEADLINE) for name, profile in profiles.items()}

    def connect(servers, named=patient, **settings):
        made.append(RemotePolicy(named, servers, **settings))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def until(condition):
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def encoded(seen):
    """The observation with pictures as its cameras compressed them; what they hold replaces what was seen."""
    given = {slot: encode_picture(image) for slot, image in seen.images.items()}
    return replace(seen, images={slot: decode_picture(data, slot) for slot, data in given.items()}, encoded=given)


def test_it_answers_as_the_policy_would(served, policy, look, reach, monkeypatch):
    monkeypatch.setattr(remote, "RATE_S", DEADLINE)  # however long this takes, it counts
    remote_policy = reach(served.url)
    both = [encoded(look(PAIR)), encoded(look(ARM))]
    (before, _) = policy.predict(both, seed=1)
    weights = np.zeros(policy.chunk_size, np.float32)
    weights[:4] = 1
    prefixes = [Prefix(before.actions, weights), None]
    found = remote_policy.predict(both, seed=5, prefix=prefixes)
    for mine, theirs in zip(found, policy.predict(both, seed=5, prefix=prefixes), strict=True):
        assert (mine.robot, mine.stamp, mine.seed) == (theirs.robot, theirs.stamp, theirs.seed)
        np.testing.assert_allclose(mine.actions, theirs.actions, atol=1e-5 * np.abs(theirs.actions).max())
    assert remote_policy.source == f"random weights at {served.url}"
    assert remote_policy.computing()["server"] == served.url
    assert not remote_policy.is_trained(19) and not trained_at(served.url, 19)
    sent = sum(len(data) for seen in both for data in seen.encoded.values())
    assert sent < remote_policy.bytes_per_second() * remote.RATE_S < sent + 20_000
    assert remote_policy.answer_ms.max > found[0].inference_ms


def test_a_robot_is_told_once_which_words_are_cut_off(served, policy, look, reach):
    said = []
    asking = reach(served.url, log=said.append)
    asking.warm_up([replace(look(), instruction=f"warm up, {LONG}")])
    assert said == []
    for _ in range(2):
        asking.predict([replace(look(PAIR), instruction=LONG), replace(look(ARM), instruction=LONG), look()])
    assert said == [*policy.remarks(LONG), *policy.remarks(look().instruction)] and "is cut off" in said[0]
    for index in range(remote.REMEMBERED):
        asking._remark([f"remark {index}"])
    assert len(asking._remarked) == remote.REMEMBERED


def test_pictures_without_an_encoding_go_as_jpeg(served, policy, look, reach):
    seen = look()
    (found,) = reach(served.url).predict([seen], seed=5)
    (expected,) = policy.predict([encoded(seen)], seed=5)
    np.testing.assert_allclose(found.actions, expected.actions, atol=1e-5 * np.abs(expected.actions).max())


def test_a_robot_that_does_not_fit_is_refused_when_it_connects(served, profiles, reach):
    mapping = profiles[PAIR].to_mapping()
    mapping["policy"] |= {"domain_id": 60000}
    misfit = type(profiles[PAIR]).from_mapping(PAIR, mapping)
    with pytest.raises(SetupError, match=r"so101_bimanual\.policy\.domain_id.*found 60000"):
        reach(served.url, {PAIR: misfit})
    with pytest.raises(SetupError, match="expected addresses, wss://HOST:PORT"):
        reach(" , ")


def test_the_shipped_policy_refuses_other_units_as_it_does_on_this_machine(profiles, reach):
    from xvla_ros.control.policy_source import load_policy

    shipped = load_policy({PAIR: profiles[PAIR]})
    mapping = profiles[PAIR].to_mapping()
    mapping["joints"]["left_shoulder_pan"] |= {"scale": 1.0, "offset": 0.0}
    radians = type(profiles[PAIR]).from_mapping("in_radians", mapping)
    with serving(shipped, {PAIR: profiles[PAIR]}) as served:
        with pytest.raises(SetupError, match="was trained with other units for left_shoulder_pan"):
            reach(served.url, {"in_radians": radians})
        twin = profiles[PAIR].model_copy(update={"name": "twin"})
        connected = reach(served.url, {"twin": twin})
        assert connected.is_trained(19) and trained_at(served.url, 19)


def test_views_elsewhere_than_in_a_checkpoint_without_a_record_are_refused(policy, profiles, reach):
    lerobots = policy.like(policy.network)
    lerobots.robots, lerobots.view_names = {}, ("front", "left_wrist", "right_wrist")
    with serving(lerobots, {}) as served:
        assert reach(served.url, {PAIR: profiles[PAIR]})
        lerobots.view_names = ("right_wrist", "front", "left_wrist")
        with pytest.raises(SetupError, match="each view would be mistaken for another"):
            reach(served.url, {PAIR: profiles[PAIR]})


def test_an_answer_after_its_deadline_is_never_read(served, policy, profiles, look, reach, monkeypatch):
    """The next question goes over another connection, so no late answer can be taken for its own."""
    entered, may_go, inner = threading.Event(), threading.Event(), at_once(policy)

    def predict(observations, **settings):
        if any(seen.instruction == "stall" for seen in observations):
            entered.set()
            assert may_go.wait(DEADLINE)
        return inner(observations, **settings)

    monkeypatch.setattr(policy, "predict", predict)
    asking = reach(served.url, {PAIR: within(profiles[PAIR], 0.3)})
    while not entered.is_set():  # on a busy machine the time may be over before the question is read
        until(lambda: asking._servers[0].is_up)
        with pytest.raises(UnreachableError) as given_up:
            asking.predict([replace(look(), instruction="stall")])
    assert "no answer within" in str(given_up.value)
    may_go.set()
    until(lambda: asking._servers[0].is_up)
    seen = look(level=7)
    (chunk,) = until(lambda: answers(asking, seen))
    assert chunk.stamp == seen.stamp and chunk.instruction == seen.instruction


def answers(asking, seen):
    try:
        return asking.predict([seen], seed=2)
    except UnreachableError:
        return []


def test_a_server_that_goes_is_named_and_taken_back_when_it_comes(policy, profiles, look, reach):
    with serving(policy, profiles) as first:
        asking, port = reach(first.url), int(first.address.rpartition(":")[2])
        assert answers(asking, look())
    with pytest.raises(UnreachableError, match=f"ws://127.0.0.1:{port}/xvla: "):
        asking.predict([look()])
    with serving(policy, profiles, port=port):
        until(lambda: answers(asking, look()))


def test_one_that_comes_back_with_another_checkpoint_is_not_asked(policy, profiles, look, reach):
    said = []
    with serving(policy, profiles) as first:
        asking, port = reach(first.url, log=said.append), int(first.address.rpartition(":")[2])
    other = policy.like(policy.network, source="another checkpoint")
    with serving(other, profiles, port=port):
        until(lambda: any("serves another checkpoint; expected random weights" in line for line in said))
        with pytest.raises(UnreachableError, match="serves another checkpoint"):
            asking.predict([look()])


def test_servers_are_compared_by_their_weights_wherever_these_lie(policy, profiles, look, reach):
    said = []
    twin = policy.like(policy.network, source="elsewhere")

    def start(which, digest):
        return Served(PolicyService(which, profiles, digest=digest), Access(port=0))

    first, same, other = start(policy, "a1"), start(twin, "a1"), start(policy, "b2")
    try:
        asking = reach(f"{first.url},{same.url}", log=said.append)
        assert all(server.is_up for server in asking._servers) and not said
        with pytest.raises(SetupError, match=r"serves other weights: .*of digest b2; expected .* of digest a1"):
            reach(f"{first.url},{other.url}")
    finally:
        for each in (first, same, other):
            each.stop()


def broken(seen):
    raise ConnectionClosedError(None, None)


def overloaded(seen):
    raise RequestError(OVERLOADED, "others wait")


@pytest.mark.parametrize("answer", [broken, overloaded])
def test_a_first_chunk_of_one_server_is_enough(served, policy, look, reach, answer):
    with scripted(answer) as other:
        alone = reach(other)
        why = "the connection broke" if answer is broken else "others wait"
        with pytest.raises(UnreachableError, match=f"{url_of(other)}: {why}"):
            alone.warm_up([look()])
        alone._servers.append(reach(served.url)._servers[0])
        alone.warm_up([look()])
        assert alone.computing()["server"] == served.url


def test_of_several_servers_the_next_answers_within_the_same_deadline(policy, profiles, look, reach):
    def start():
        return Served(PolicyService(policy, profiles), Access(port=0))

    there = {each.url: each for each in (start(), start())}
    try:
        asking = reach(",".join(there))
        asking.predict([look()])
        dies = asking.computing()["server"]
        there.pop(dies).stop()
        (chunk,) = asking.predict([look()], seed=1)
        assert chunk.robot == PAIR
        assert [asking.computing()["server"]] == list(there)
    finally:
        for each in there.values():
            each.stop()


def test_servers_for_which_no_time_was_left_are_named(served, profiles, look, reach):
    """As where the process stood for as long as an answer may take."""
    asking = reach(served.url, {PAIR: within(profiles[PAIR], 1e-9)})
    said = f"{url_of(served.url)}: no answer within 1e-09 s: no time was left for it"
    with pytest.raises(UnreachableError, match=said):
        asking.predict([look()])


def test_the_least_late_server_is_asked_and_not_left_for_a_little(served, reach, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", DEADLINE)  # nobody measures them meanwhile
    asking = reach(served.url)
    (server,) = asking._servers
    near, far = (remote._Server(f"ws://{name}/xvla", server.link) for name in ("near", "far"))
    asking._servers = [far, near, server]
    far.latency_s, near.latency_s, server.latency_s = 0.3, 0.1, 0.11
    asking._current = None
    assert [each is near for each in asking._ordered()] == [True, False, False]
    asking._current = server
    assert asking._ordered()[0] is server, "a tenth better is not worth a change"
    near.latency_s = 0.05
    assert asking._ordered()[0] is near
    asking._servers = [server]


def test_what_no_other_server_would_answer_is_raised_at_once(served, look, reach):
    asking = reach(served.url)
    with pytest.raises(RequestError, match=r"observation: .*state is not finite"):
        asking.predict([replace(look(), state=np.full(12, np.nan, np.float32))])
    assert answers(asking, look()), "the connection goes on"


def test_a_token_from_a_file_or_from_the_environment(policy, profiles, look, reach, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with serving(policy, profiles, token=TOKEN) as served:
        with pytest.raises(SetupError, match="401"):
            reach(served.url)
        assert answers(reach(served.url, credentials=Credentials.of_files(str(file))), look())
        monkeypatch.setenv(remote.TOKEN_FILE, str(file))
        assert answers(reach(served.url, credentials=Credentials.of_files()), look())
    with pytest.raises(SetupError, match="token file"):
        Credentials.of_files(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("gpu", "ws://gpu:8000/xvla"),
        ("gpu:9000", "ws://gpu:9000/xvla"),
        ("wss://gpu", "wss://gpu:8000/xvla"),
        ("ws://[::1]:8000/", "ws://[::1]:8000/xvla"),
        ("ws://[::1]", "ws://[::1]:8000/xvla"),
        ("wss://gpu:8000/xvla", "wss://gpu:8000/xvla"),
    ],
)
def test_addresses(given, url):
    assert url_of(given) == url


@pytest.mark.parametrize("given", ["gpu:80a0", "gpu:99999", "gpu:0", "gpu:", ":8000", "::1", "wss://fe80::1", "[::1"])
def test_an_address_that_is_none_is_refused_by_name(given):
    with pytest.raises(SetupError, match=rf"server is {re.escape(repr(given))}; .*a port of 1 … 65535, .*\[::1\]:8000"):
        url_of(given)


def test_a_link_says_the_load_of_its_server(served):
    link = Link(url_of(served.url))
    assert link.load().keys() >= {"inference_ms", "queue_ms", "waiting"}
    link.close()
    assert not link.is_open
