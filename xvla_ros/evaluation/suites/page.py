# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation on a suite: rates, what they are worth, films of failures, and the protocol."""

from __future__ import annotations

from pathlib import Path

from xvla_ros.evaluation.report import provenance
from xvla_ros.evaluation.report.page import write_page
from xvla_ros.evaluation.suites.results import SuiteResult


def write_suite_page(result: SuiteResult, path: Path) -> None:
    """Write ``report.html``; films are linked and lie beside it."""
    run, (own, blind) = result.run, result.rates()
    words = {task.index: task.instruction for task in result.tasks}
    reported = run.protocol.reported.get(run.suite)
    write_page(
        "suite.html",
        path,
        title=f"{run.suite}: {own}",
        subtitle=f"{run.checkpoint or run.driver}, through {run.through}; {run.protocol.name}: {run.protocol.by}",
        advice=result.advice(),
        figures=[
            (f"{own.successes} of {own.total}", f"{run.driver} succeeded"),
            (f"{blind.successes} of {blind.total}" if blind.total else "not run", "blind replay succeeded"),
            *([(f"{reported:.1%}", "published with this protocol")] if reported is not None else []),
            (run.versions["mujoco"], "MuJoCo"),
        ],
        driver=run.driver,
        rows=result.rows(),
        films=[
            (each.film, f"task {each.task}, episode {each.episode}: {words[each.task]}")
            for each in result.of(run.driver)
            if each.film
        ],
        settings=[
            *((name.replace("_", " "), _in_words(value)) for name, value in run.protocol.to_mapping().items()),
            ("seed of the noise", str(run.seed)),
            ("checkpoint", run.checkpoint or "(none)"),
            ("digest of the checkpoint", run.digest or "(none)"),
            *((f"{name} in the simulator", value) for name, value in run.versions.items() if value),
            *provenance.rows(provenance.provenance(), result.computing),
        ],
    )


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
