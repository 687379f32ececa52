# SPDX-License-Identifier: Apache-2.0
"""One cold start: a process that goes the policy node's way to its first chunk and says where the time went.

    python bench/start_process.py BEGUN OPTIONS

``BEGUN`` is the steady clock's time, in seconds, at which somebody started this process; it is one clock for all
processes of a machine. ``OPTIONS`` is JSON: checkpoint, device, dtype, threads, compile, engine. The last line printed
is JSON too. Nothing is imported above that the node would not import before it loads a policy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# In this order; the first chunk is the last of the start, the second shows what the first still had to do.
INTERPRETER, TORCH, TRANSFORMERS, OURS = "interpreter", "torch", "transformers", "xvla_ros"
DEVICE, FILES, WEIGHTS, PREPARE, FIRST, SECOND = "device", "files", "weights", "prepare", "first chunk", "second chunk"
PARTS = (INTERPRETER, TORCH, OURS, DEVICE, FILES, TRANSFORMERS, WEIGHTS, PREPARE, FIRST)


def start(begun: float, options: dict[str, Any]) -> dict[str, Any]:
    """Start a policy as the node does and let it answer twice.

    Returns:
        ``seconds`` of each part on the clock, and those of all ``processors`` together; ``runs``, what runs in words;
        ``peak_bytes`` of the process and ``device_peak_bytes``; ``machine``.
    """
    seconds, processors = {INTERPRETER: time.monotonic() - begun}, {INTERPRETER: time.process_time()}
    wait: Callable[[], object] = lambda: None  # noqa: E731

    @contextmanager
    def part(name: str) -> Iterator[None]:
        begun, spent = time.monotonic(), time.process_time()
        yield
        wait()
        seconds[name], processors[name] = time.monotonic() - begun, time.process_time() - spent

    from xvla_ros.model.imports import collector_paused, kept_for_good

    engine = options["engine"]

    with part(TORCH), collector_paused():
        import torch
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    with part(OURS), collector_paused():
        from xvla_ros.model.checkpoint import PROFILE_STEPS, build, read_files
        from xvla_ros.model.network.encoder import import_backbone
        from xvla_ros.model.runtime.engines import TORCH as EAGER
        from xvla_ros.model.runtime.engines import exports, on_engine
        from xvla_ros.model.runtime.fast import accelerate, get_ready
    device = torch.device(options["device"])
    if device.type == "cuda":
        wait = lambda: torch.cuda.synchronize(device)  # noqa: E731
    with part(DEVICE):
        torch.empty(0, device=device)
    with part(FILES):
        files = read_files(options["checkpoint"], assume=PROFILE_STEPS)
    late = engine != EAGER and bool(exports(files.folders.base))
    with part(TRANSFORMERS), kept_for_good():
        if not late:
            import_backbone()
    with part(WEIGHTS):
        policy = build(files, device=device, dtype=options["dtype"], late=late)
    from latency_inputs import make_observations

    observations = make_observations(policy)  # before the next part begins: no camera node makes frames
    with part(PREPARE):
        views = {policy.processor.views(each.embodiment) for each in observations}
        policy = accelerate(policy, compile=options["compile"]) if engine == EAGER else on_engine(policy, engine, views)
        get_ready(policy, observations)
    for name in (FIRST, SECOND):
        with part(name):
            policy.predict(observations, seed=0)
    said = {"seconds": seconds, "processors": processors, "runs": f"{policy.runner.description}, {policy.precision}"}
    return said | _surroundings(device)


def _surroundings(device: torch.device) -> dict[str, Any]:
    import torch
    from latency import machine
    from latency_work import resident

    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"peak_bytes": resident("VmHWM"), "device_peak_bytes": on_device, "machine": machine(device)}


def main() -> int:
    begun, options = float(sys.argv[1]), json.loads(sys.argv[2])
    try:
        found = start(begun, options)
    except (ValueError, RuntimeError, AssertionError) as error:  # the last where torch has no such kind of device
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
