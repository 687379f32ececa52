# SPDX-License-Identifier: Apache-2.0
"""Changed files against every reader: ``python test/hostile/fuzz_readers.py MINUTES [SEED] [--atheris]``.

Structure is drawn by hypothesis: values of a whole example are replaced, taken out, added and nested. Bytes are changed
at random; with ``--atheris`` they are chosen by what they reach in the readers, where atheris is installed. Every case
must be read or refused by the reader's own error. The readers run in a process apart: one that ends, or hangs, is told
and another goes on. Exit code 1 where a case was neither; each such kind is printed, with a file of it that was kept.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from foreign_files import Reader, outcome_of, readers
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SLICE = 25  # cases before the next reader
MOST_CPU_S = 10.0  # of one case; a machine may be busy
HANGS_AFTER_S = 300.0  # without a slice that ended: what waits takes no processor time
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([10**9, 10**18, -(10**30), 1e308, float("nan"), float("inf"), -1e308, 1e-320])
)
TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["../../etc/passwd", "/etc/passwd", "\0", "x" * 5000, "nan", "{0.__class__}"])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
KEPT = Path("xvla_out/fuzz")
BLOCKS = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f")


class TooSlow(BaseException):
    """A case that does not end."""


def _too_slow(number: int, frame: Any) -> None:
    raise TooSlow(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")


@dataclass
class Tally:
    """What became of the cases of one reader."""

    read: int = 0
    refused: int = 0
    others: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.read + self.refused + self.others.total()

    def merge(self, told: dict[str, Any]) -> None:
        """Count what another process counted, as ``told`` gives it."""
        self.read += told["read"]
        self.refused += told["refused"]
        self.others.update(told["others"])
        self.seconds += told["seconds"]

    def told(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {"read": self.read, "refused": self.refused, "others": dict(self.others), "seconds": self.seconds}

    def add(self, outcome: str) -> None:
        """Count a case."""
        if outcome in ("read", "refused"):
            setattr(self, outcome, getattr(self, outcome) + 1)
        else:
            self.others[outcome] += 1


def places_of(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value of a tree."""
    found = [way]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:6]) if isinstance(tree, list) else ()
    for key, value in items:
        found += places_of(value, (*way, key))
    return found


def changed_tree(tree: Any, places: list[tuple[Any, ...]], draw: Any) -> Any:
    """Return a tree with up to three of its values replaced, taken out, added or nested."""
    tree = copy.deepcopy(tree)
    for way in draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        if not way:
            continue
        place, kind, value = tree, draw(st.sampled_from(["put", "put", "out", "add", "nest"])), draw(VALUES)
        try:
            for key in way[:-1]:
                place = place[key]
            if kind == "out":
                del place[way[-1]]
            elif kind == "add" and isinstance(place, dict):
                place[draw(TEXTS)] = value
            else:
                place[way[-1]] = value if kind == "put" else {"deep": place[way[-1]]}
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    return tree


def changed_bytes(rng: random.Random, whole: bytes) -> bytes:
    """Return bytes with a few changed, taken out, put in, or cut off."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 4, 8, 16])):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.5 and at < len(data):
            data[at] = rng.randrange(256) if kind < 0.4 else data[at] ^ 1 << rng.randrange(8)
        elif kind < 0.65:
            del data[at : at + rng.choice([1, 2, 4, 16, 64])]
        elif kind < 0.75:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
        elif kind < 0.95:
            block = rng.choice(BLOCKS)
            data[at : at + len(block)] = block
        else:
            del data[at:]
    return bytes(data)


class Target:
    """One reader with its example in a folder of its own."""

    def __init__(self, name: str, reader: Reader, folder: Path) -> None:
        self.name, self.reader, self.tally = name, reader, Tally()
        self.folder = folder / "".join(each if each.isalnum() else "_" for each in name)
        self.folder.mkdir(parents=True)
        self._kept = folder / "kept"
        self._kept.mkdir(exist_ok=True)
        reader.make(self.folder)
        self.file = self.folder / reader.name
        self.whole = self.file.read_bytes()
        self.tree: Any = None
        if reader.form in ("json", "lines", "yaml"):
            self.tree = yaml.safe_load(self.whole) if reader.form == "yaml" else json.loads(self.whole)
        self._places = places_of(self.tree)

    def case(self, data: bytes) -> None:
        """Let the reader read this."""
        self.file.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
        try:
            outcome = outcome_of(self.reader, self.folder)
        except TooSlow as error:
            outcome = f"took more than {MOST_CPU_S:g} s of processor time at {error}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        if outcome not in ("read", "refused") and outcome not in self.tally.others:
            (self._kept / f"{self.folder.name}_{len(self.tally.others)}").write_bytes(data)
        self.tally.add(outcome)

    def structure(self, number: int, start: int) -> None:
        """Try trees that hypothesis draws."""

        @seed(start)
        @settings(
            max_examples=number, phases=[Phase.generate], database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.data())
        def one(data: Any) -> None:
            tree = changed_tree(self.tree, self._places, data.draw)
            dump = yaml.safe_dump if self.reader.form == "yaml" else json.dumps
            self.case(dump(tree).encode("utf-8", "surrogatepass"))

        one()

    def bytes(self, number: int, start: int) -> None:
        """Try bytes that were changed at random."""
        rng = random.Random(start)
        for _ in range(number):
            self.case(changed_bytes(rng, self.whole))


def fuzz(
    folder: Path,
    start: int,
    *,
    minutes: float = 0.0,
    cases: int = 0,
    turn: int = 0,
    tell: Callable[[dict[str, Any]], object] = lambda told: None,
) -> dict[str, Tally]:
    """Fuzz every reader in turn for some minutes, or with a number of cases each.

    Args:
        folder: for the examples and, beneath ``kept``, a file of each kind of case that was neither read nor refused.
        start: of the seeds.
        minutes, cases: how long; ``cases`` counts where it is not 0.
        turn: of which number the first is, where others went before.
        tell: takes reader, file and turn before a slice, and what became of its cases so far after it.
    """
    signal.signal(signal.SIGPROF, _too_slow)
    targets = [Target(name, reader, folder) for name, reader in readers().items()]
    end = time.monotonic() + 60 * minutes
    while (turn * SLICE < cases) if cases else (time.monotonic() < end):
        for number, target in enumerate(targets):
            tell({"reader": target.name, "file": str(target.file), "turn": turn})
            begun, drawn = time.process_time(), start + 1000 * turn + number
            size = min(SLICE, cases - turn * SLICE) if cases else SLICE
            try:
                if target.tree is not None and turn % 2 == 0:
                    target.structure(size, drawn)
                else:
                    target.bytes(size, drawn)
            finally:
                target.tally.seconds += time.process_time() - begun
            tell({"reader": target.name, "tally": target.tally.told()})
        turn += 1
    return {target.name: target.tally for target in targets}


def fuzz_apart(folder: Path, start: int, minutes: float) -> dict[str, Tally]:
    """Fuzz every reader in turn for some minutes in a process apart, and in another where that ends or hangs."""
    tallies = {name: Tally() for name in readers()}
    end, turn, number = time.monotonic() + 60 * minutes, 0, 0
    while (left := end - time.monotonic()) > 0.0:
        home = folder / f"process_{number}"
        program = [sys.executable, __file__, str(left / 60), str(start), "--turn", str(turn), "--in", str(home)]
        known: dict[str, dict[str, Any]] = {}
        at: dict[str, Any] = {}
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            stuck = threading.Timer(HANGS_AFTER_S, process.kill)
            assert process.stdout is not None
            for line in process.stdout:
                stuck.cancel()
                stuck = threading.Timer(HANGS_AFTER_S, process.kill)
                stuck.start()
                told = json.loads(line)
                if "tally" in told:
                    known[told["reader"]] = told["tally"]
                else:
                    at = told
            stuck.cancel()
        for name, tally in known.items():
            tallies[name].merge(tally)
        if process.returncode != 0 and at:
            shutil.copyfile(at["file"], home / "kept" / f"ended_{number}")
            tallies[at["reader"]].add(f"the process ended with {process.returncode}")
        shutil.copytree(home / "kept", KEPT, dirs_exist_ok=True)
        shutil.rmtree(home)
        turn, number = at.get("turn", turn) + 1, number + 1
    return tallies


def chosen_by_coverage(name: str, folder: Path, seconds: int, start: int) -> Tally:
    """Fuzz one reader in a process of its own, whose bytes atheris chooses by the lines that they reach."""
    program = [sys.executable, __file__, "0", str(start), "--one", name, "--for", str(seconds), "--in", str(folder)]
    begun = time.monotonic()
    subprocess.run(program, capture_output=True, timeout=seconds + 600, check=False)
    told = json.loads((folder / "tally.json").read_text()) if (folder / "tally.json").exists() else {}
    tally = Tally(told.get("read", 0), told.get("refused", 0), Counter(told.get("others", {"ended": 1})))
    tally.seconds = time.monotonic() - begun
    return tally


def _under_atheris(name: str, folder: Path, seconds: int, start: int) -> None:
    import atheris

    signal.signal(signal.SIGPROF, _too_slow)
    target = Target(name, readers()[name], folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "whole").write_bytes(target.whole)
    end = time.monotonic() + seconds

    def one(data: bytes) -> None:
        target.case(data)
        if target.tally.cases % 200 == 0 or time.monotonic() > end:
            (folder / "tally.json").write_text(json.dumps(target.tally.told()))

    atheris.instrument_all() if seconds > 300 else None
    atheris.Setup([name, str(corpus), f"-max_total_time={seconds}", f"-seed={start}", "-rss_limit_mb=4000"], one)
    atheris.Fuzz()


def report(tallies: dict[str, Tally]) -> str:
    """Return a table for people and for docs/reliability.md."""
    lines = ["| reader | cases | read | refused by name | otherwise | CPU s |", "|---|---:|---:|---:|---:|---:|"]
    for name, each in tallies.items():
        lines.append(
            f"| {name} | {each.cases} | {each.read} | {each.refused} | {each.others.total()} | {each.seconds:.0f} |"
        )
    total = sum(each.cases for each in tallies.values()), sum(each.others.total() for each in tallies.values())
    lines += [f"| all | {total[0]} | | | {total[1]} | |", ""]
    for name, each in tallies.items():
        lines += [f"{name}: {count} × {outcome}" for outcome, count in each.others.most_common(20)]
    return "\n".join(lines)


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--atheris", action="store_true", help="let coverage choose the bytes, for half of the time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--for", dest="seconds", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        _under_atheris(told.one, told.folder, told.seconds, told.seed)
        return 0
    if told.turn is not None:
        fuzz(
            told.folder,
            told.seed,
            minutes=told.minutes,
            turn=told.turn,
            tell=lambda line: print(json.dumps(line), flush=True),
        )
        return 0
    covered = told.atheris and importlib.util.find_spec("atheris") is not None
    if told.atheris and not covered:
        print("atheris is not installed: bytes are changed at random alone")
    with tempfile.TemporaryDirectory() as folder:
        tallies = fuzz_apart(Path(folder), told.seed, told.minutes / 2 if covered else told.minutes)
        for number, name in enumerate(readers() if covered else ()):
            seconds = max(10, round(30 * told.minutes / len(tallies)))
            home = Path(folder) / f"covered_{number}"
            home.mkdir()
            tallies[f"{name}, by coverage"] = chosen_by_coverage(name, home, seconds, told.seed)
        if any(each.others for each in tallies.values()):
            print(f"a file of each kind that was neither read nor refused is in {KEPT}")
    print(report(tallies))
    return int(any(each.others for each in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
