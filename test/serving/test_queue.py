# SPDX-License-Identifier: Apache-2.0
"""Who is next, and who shares a pass."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from xvla_ros.control.engine import Engine
from xvla_ros.errors import RequestError
from xvla_ros.serving import queue as queue_module
from xvla_ros.serving.queue import Ask, FairQueue, SeededObservation
from xvla_ros.types import ActionChunk, Embodiment

ARM = Embodiment("arm", 0, "auto", ("front",), 0.1, 0.1)
FAR = 1e9


def of(queue, owner, steps=10, views=1, deadline=FAR):
    seen = SeededObservation(replace(ARM, denoising_steps=steps), 0, {}, np.zeros(2, np.float32), owner)
    return Ask(seen, None, views, owner, deadline, queue)


def in_a_loop(function):
    async def run():
        return function()

    return asyncio.run(run())


def owners(asks):
    return [ask.owner for ask in asks]


def test_each_owner_is_served_in_turn_however_much_one_asks(monkeypatch):
    monkeypatch.setattr(queue_module, "MAX_BATCH", 1)

    def serve():
        queue, served = FairQueue(), []
        queue.add(*(of(queue, "greedy") for _ in range(6)))
        queue.add(of(queue, "a"), of(queue, "b"))
        while len(queue):
            (ask,) = list(queue)
            assert ask.observe() is not None
            served.append(ask.owner)
        return served

    assert in_a_loop(serve) == ["greedy", "a", "b", "greedy", "greedy", "greedy", "greedy", "greedy"]


def test_long_passes_are_charged_as_such(monkeypatch):
    """One who asks for ten times the steps is served a tenth as often."""
    monkeypatch.setattr(queue_module, "MAX_BATCH", 1)

    def serve():
        queue, served = FairQueue(), []
        for _ in range(44):
            for owner, steps in (("long", 100), ("short", 10)):
                if owner not in owners(queue._asks):
                    queue.add(of(queue, owner, steps))
            (ask,) = list(queue)
            ask.observe()
            served.append(ask.owner)
        return served.count("long")

    assert in_a_loop(serve) == 4


def test_one_who_comes_late_has_no_credit(monkeypatch):
    monkeypatch.setattr(queue_module, "MAX_BATCH", 1)

    def serve():
        queue = FairQueue()
        for _ in range(50):
            queue.add(of(queue, "old"))
            next(iter(queue)).observe()
        queue.add(*(of(queue, "new") for _ in range(3)), *(of(queue, "old") for _ in range(3)))
        served = []
        while len(queue):
            ask = next(iter(queue))
            ask.observe()
            served.append(ask.owner)
        return served

    assert in_a_loop(serve)[:4].count("old") >= 1


def test_only_those_of_the_same_shape_share_a_pass():
    def share():
        queue = FairQueue()
        queue.add(of(queue, "a"), of(queue, "b", steps=5), of(queue, "c"), of(queue, "d", views=2))
        return owners(queue)

    assert in_a_loop(share) == ["a", "c"]


def test_a_pass_of_many_steps_takes_few_so_that_others_wait_less():
    def share(steps):
        queue = FairQueue()
        queue.add(*(of(queue, str(number), steps) for number in range(20)))
        return len(list(queue))

    assert [in_a_loop(lambda steps=steps: share(steps)) for steps in (1, 10, 20, 100)] == [16, 16, 8, 1]


def test_a_batch_is_bounded_and_so_is_what_waits():
    def fill():
        queue = FairQueue()
        queue.add(*(of(queue, str(number)) for number in range(queue_module.MAX_WAITING)))
        refused = "overloaded: 256 observations are already waiting; send it again later"
        with pytest.raises(RequestError, match=refused), queue.reading("one more", 1):
            pass
        return len(list(queue))

    assert in_a_loop(fill) == queue_module.MAX_BATCH


def test_one_who_asks_for_everything_leaves_room_for_others():
    def fill():
        queue = FairQueue()
        queue.add(*(of(queue, "greedy") for _ in range(queue_module.MAX_WAITING_EACH)))
        refused = "overloaded: 64 observations of greedy are already waiting; send it again later"
        with pytest.raises(RequestError, match=refused), queue.reading("greedy", 1):
            pass
        with queue.reading("another", 1):
            queue.add(of(queue, "another"))
        return len(queue)

    assert in_a_loop(fill) == queue_module.MAX_WAITING_EACH + 1


def test_what_is_being_read_has_its_place_already():
    queue = FairQueue()
    with queue.reading("greedy", queue_module.MAX_WAITING_EACH):
        with (
            pytest.raises(RequestError, match="64 observations of greedy are already waiting"),
            queue.reading("greedy", 1),
        ):
            pass
        with queue.reading("another", 1):
            pass
    with queue.reading("greedy", 1):
        pass


def test_pictures_that_wait_take_so_much_memory_and_give_it_back():
    queue, each = FairQueue(), queue_module.MAX_BYTES_EACH
    with queue.memory("a") as take, queue.memory("a") as take_also, queue.memory("b") as take_of_another:
        take(each - 5)
        take_also(5)
        with pytest.raises(
            RequestError, match=r"overloaded: images of a .* 256 MiB, and all together 256 MiB; expected"
        ):
            take(1)
        take_of_another(each)
    with queue.memory("a") as take:
        take(each)
    with pytest.raises(RequestError, match="late"):
        take(1)  # by a thread that still decodes for who has gone
    with queue.memory("a") as take:
        take(each)


def test_who_has_gone_or_came_too_late_is_not_computed():
    async def run():
        queue = FairQueue()
        gone, late = of(queue, "gone"), of(queue, "late", deadline=time.monotonic() - 1.0)
        queue.add(gone, late)
        queue.drop(gone)
        assert gone.observe() is None and late.observe() is None
        with pytest.raises(
            RequestError,
            match=r"late: waited \d+ ms for the policy, which is longer than its "
            r"deadline",
        ):
            await late.answer

    asyncio.run(run())


def test_those_that_are_being_read_are_waited_for_so_that_they_share_a_pass():
    """Else the first of several who ask together is computed alone, and the others after it."""
    batches, waits = [], threading.Event()

    def predict(observations, prefixes):
        batches.append([seen.instruction for seen in observations])
        return [ValueError("nothing to answer")] * len(observations)

    class Watched(FairQueue):
        def __iter__(self):
            found = list(super().__iter__())
            if [each.wants_chunk() for each in found] == [True, False]:
                waits.set()
            return iter(found)

    async def run():
        queue = Watched()
        engine = Engine(predict, queue, batch_wait=60.0)
        asks = [of(queue, "first"), of(queue, "second")]
        with queue.reading("both", 2):
            queue.add(asks[0])
            step = asyncio.create_task(asyncio.to_thread(engine.step))
            assert await asyncio.to_thread(waits.wait, 60.0)
            queue.add(asks[1])
        assert await step
        for ask in asks:
            with pytest.raises(ValueError, match="nothing to answer"):
                await ask.answer

    asyncio.run(run())
    assert batches == [["first", "second"]]


def test_a_full_batch_waits_for_nobody():
    def fill():
        queue = FairQueue()
        with queue.reading("another", 1):
            queue.add(*(of(queue, str(number)) for number in range(queue_module.MAX_BATCH - 1)))
            assert len(list(queue)) == queue_module.MAX_BATCH, "and one that is coming"
            queue.add(of(queue, "the last"))
            assert all(each.wants_chunk() for each in queue)
            return len(list(queue))

    assert in_a_loop(fill) == queue_module.MAX_BATCH


def test_an_answer_says_how_long_it_waited():
    async def run():
        queue = FairQueue()
        ask = of(queue, "a")
        queue.add(ask)
        request = ask.observe()
        chunk = ActionChunk("arm", 0, "auto", "go", 0, np.ones(1), np.ones((1, 2), np.float32), 1.0, 0)
        ask.deliver(request, chunk)
        ask.policy_failed(RuntimeError("too late: it is settled"))
        answer = await ask.answer
        assert answer.chunk is chunk and answer.queue_ms >= 0.0
        assert ask.observe() is None, "it is taken once"

    asyncio.run(run())
