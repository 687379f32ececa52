"""The commands that measure how fast things are."""

from __future__ import annotations

import argparse
from typing import Any

from xvla_ros.commands.options import Commands, add_command, add_device, add_dtype, count, seed


def add_bench(commands: Commands) -> None:
    """Add ``xvla bench latency`` and ``xvla bench start``."""
    group = commands.add_parser("bench", help="measure how fast a policy is on this machine")
    measured = group.add_subparsers(title="what is measured", required=True, metavar="WHAT")
    _add_latency(measured)
    _add_start(measured)


def _add_latency(measured: Commands) -> None:
    parser = add_command(
        measured, "latency", _bench_latency, "time a chunk of a policy, part by part, against the hardware and LeRobot",
        "  xvla bench latency --int8\n"
        "  xvla bench latency --size full --chunks 10 --peer lerobot --json latency.json\n"
        "  xvla bench latency --checkpoint my_checkpoint --steps 4 --threads 1\n"
        "  xvla bench latency --size full --device cuda --dtype bfloat16 --batch 8 --chunks 1000",
    )
    _add_policy(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="to compute in (default: the fastest here)"
    )
    parser.add_argument("--views", type=count, help="cameras (default 3, or the checkpoint's)")
    parser.add_argument("--batch", type=count, default=1, help="observations answered at once (default 1)")
    parser.add_argument("--steps", type=count, default=10, help="denoising steps (default 10)")
    parser.add_argument("--chunks", type=count, default=20, help="of each way, taken in turn (default 20)")
    _add_running(parser)
    parser.add_argument("--int8", action="store_true", help="also with int8 weights and activations, on the CPU")
    parser.add_argument("--peer", choices=("lerobot",), default="", help="also by another program, same weights")
    parser.add_argument(
        "--peer-python", default="", metavar="PYTHON", help="its interpreter (default: of XVLA_LEROBOT_PYTHON)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of random weights, frames and noise (default 0)")
    _add_json_file(parser)


def _add_start(measured: Commands) -> None:
    parser = add_command(
        measured, "start", _bench_start, "time a policy from the start of its process to its first chunk, part by part",
        "  xvla bench start --checkpoint policy\n"
        "  xvla bench start --size full --runs 4 --json start.json\n"
        "  xvla bench start --size full --device cuda --dtype bfloat16",
    )
    _add_policy(parser)
    add_dtype(parser)
    _add_running(parser)
    parser.add_argument(
        "--runs", type=count, default=5,
        help="processes started; the first brings files into the page cache and is left out (default 5)",
    )
    _add_json_file(parser)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", choices=("small", "full"), default="small",
        help="of random weights: the network that ships, or the published 0.9 B (default small)",
    )
    parser.add_argument("--checkpoint", default="", help="folder or hub id, instead of random weights")
    add_device(parser)


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=count, default=0, help="of torch (default: as torch chooses)")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="of the fast path (default auto)"
    )


def _add_json_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures as JSON")


def _bench_latency(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.latency import LatencyOptions, latency

    return latency(LatencyOptions(**_given(options)))


def _bench_start(options: argparse.Namespace) -> int:
    from xvla_ros.evaluation.start import StartOptions, start

    return start(StartOptions(**_given(options)))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "command"}
