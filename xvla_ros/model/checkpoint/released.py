# SPDX-License-Identifier: Apache-2.0
"""The X-VLA checkpoints that others published: what each is for, and what its publishers report.

Embodiments and scores are those of the README of https://github.com/2toinf/X-VLA (2toINF) and of
https://huggingface.co/docs/lerobot/xvla (lerobot). Soft prompts are those that the authors' evaluation clients ask for;
the AgiBot challenge's is that of their table of data sets. Nothing of this table was measured by this project: it could
not get the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

FOUNDATION = "2toINF/X-VLA-Pt"


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A published checkpoint.

    Attributes:
        hub_id: its name on the Hugging Face hub.
        embodiment: the robot, and what the policy was trained for.
        robot: the profile of this package that suits it; empty where there is none.
        domain_id: the row of its soft prompt; None for a foundation, which is to be adapted.
        action_mode: how its actions are laid out.
        score: what its publishers report, in % where no unit is named; empty where they report nothing.
        adapter: it holds a LoRA adapter, and names its base.
        suite: the benchmark here that it was trained for; empty where there is none.
    """

    hub_id: str
    embodiment: str
    robot: str = ""
    domain_id: int | None = None
    action_mode: str = "ee6d"
    score: str = ""
    adapter: bool = False
    suite: str = ""

    @property
    def command(self) -> str:
        """What to begin with: evaluate it, check it against the robot, adapt it, or serve it to its authors' client."""
        if self.domain_id is None:
            return f"xvla train adapt_lora.yaml model.checkpoint={self.hub_id}"
        named = f"{self.hub_id},{FOUNDATION}" if self.adapter else self.hub_id  # it names its base without a commit
        if self.suite:
            return f"xvla evaluate --suite {self.suite} --checkpoint {named}"
        if self.robot:
            return f"xvla check --robot {self.robot} --checkpoint {named}"
        return f"xvla serve --checkpoint {named}"


_PANDA, _WIDOWX, _AGIBOT, _AGILEX = "Franka Panda, ", "WidowX 250s, ", "AgiBot G1, ", "AgileX pair, "
_libero = partial(ReleasedCheckpoint, robot="libero_panda", domain_id=3)
_bridge = partial(ReleasedCheckpoint, robot="widowx", domain_id=0)
_challenge = partial(ReleasedCheckpoint, robot="agibot", domain_id=9, action_mode="agibot_ee6d")

RELEASED: tuple[ReleasedCheckpoint, ...] = (
    ReleasedCheckpoint(FOUNDATION, "foundation, seven platforms"),
    _libero("2toINF/X-VLA-Libero", _PANDA + "LIBERO", score="98.1", suite="libero_object"),
    _bridge("2toINF/X-VLA-WidowX", _WIDOWX + "Bridge", score="95.8 (SimplerEnv)"),
    _challenge("2toINF/X-VLA-AgiWorld-Challenge", _AGIBOT + "AgiBot World Challenge", score="1st"),
    ReleasedCheckpoint("2toINF/X-VLA-Google-Robot", "Google robot, RT-1", domain_id=1, score="83.5 (VM), 76.4 (VA)"),
    ReleasedCheckpoint("2toINF/X-VLA-Calvin-ABC_D", _PANDA + "CALVIN", domain_id=2, score="4.43 tasks of 5"),
    ReleasedCheckpoint("2toINF/X-VLA-VLABench", _PANDA + "VLABench", domain_id=8, score="51.1 (score)"),
    ReleasedCheckpoint("2toINF/X-VLA-RoboTwin2", _AGILEX + "RoboTwin 2", domain_id=6, score="70"),
    ReleasedCheckpoint("2toINF/X-VLA-SoftFold", _AGILEX + "folding cloth", domain_id=5, score="100 in 2 h"),
    *(
        _libero(f"2toINF/X-VLA-libero-{name}-peft", _PANDA + suite, score=score, adapter=True, suite=suite)
        for name, suite, score in (
            ("spatial", "libero_spatial", "96.2"),
            ("object", "libero_object", "96"),
            ("goal", "libero_goal", "94.4"),
            ("long", "libero_10", "83.2"),
        )
    ),
    _bridge("2toINF/X-VLA-simpler-widowx-peft", _WIDOWX + "Bridge", score="66.7 (SimplerEnv)", adapter=True),
    ReleasedCheckpoint("lerobot/xvla-base", "foundation, seven platforms"),
    _libero("lerobot/xvla-libero", _PANDA + "LIBERO", score="93", suite="libero_object"),
    _bridge("lerobot/xvla-widowx", _WIDOWX + "Bridge"),
    _challenge("lerobot/xvla-agibot-world", _AGIBOT + "AgiBot World"),
    ReleasedCheckpoint("lerobot/xvla-google-robot", "Google robot, RT-1", domain_id=1),
    ReleasedCheckpoint("lerobot/xvla-folding", _AGILEX + "folding cloth", domain_id=5, score="100 in 2 h"),
)


def hub_id_of(name: str) -> str:
    """Return the hub id of a published checkpoint, named with or without its publisher, in any case; else ``name``."""
    found = [
        each.hub_id for each in RELEASED if name.lower() in (each.hub_id.lower(), each.hub_id.split("/")[1].lower())
    ]
    return found[0] if len(found) == 1 else name
