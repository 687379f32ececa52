# SPDX-License-Identifier: Apache-2.0
"""The reference page of a training file's settings, written from the schema: docs/reference/training.md."""
# ruff: noqa: E501 — a row of a Markdown table is one line

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xvla_ros.training.config import TrainSettings

_HEAD = """# Settings of a training file

Written from the schema by `python tools/training_reference.py docs/reference/training.md`; change
`xvla_ros/training/config.py`, not this page. What one does with it: [train a policy](../how-to/train.md).

`xvla train FILE [key.sub=value …]`: every setting can be given on the command line, its value in YAML, lists indexed by
number (`datasets.0.weight=2`). Everything that is wrong is named at once: file, key, value, what is expected. `--dry-run`
opens data and checkpoint, says what would be trained, how long that takes and the memory, and stops. The entries of
`datasets` and of `augmentation` are in [samples](samples.md)."""

_TAIL = """
## Groups and rates

| group | weights | rate | rises |
|---|---|---|---|
| `soft_prompts` | `transformer.soft_prompt_hub` | base × `soft_prompt_scale` | over `soft_prompt_warmup`, from `soft_prompt_warmup_scale` |
| `action_rows` | action encoder and decoder; every domain-aware layer | base | over `row_warmup` |
| `policy` | the rest of `transformer.`, with `vlm_proj` | base | over `ramp`, after `prompt_warmup` |
| `vlm` | `vlm.`: vision tower, projector, language encoder | base × `vlm_scale` | over `ramp`, after `prompt_warmup` |

A step moves only the groups whose rate is above 0. Weight decay is for matrices of linear layers and convolutions alone.

| method | moves |
|---|---|
| `full` | everything |
| `lora` | a low-rank update of every linear layer, soft prompts, action rows: at full size with rank 8, 8.05 M + 0.98 M + 2.86 M of 879 M; merged in the checkpoint |
| `prompt` | of the trained domains alone, to the bit: soft prompt and action rows, 128,020 parameters for each at full size |

## Pretraining a vision tower

`xvla pretrain-vision FILE` is `xvla train FILE` with `objective: vision`, with `output: xvla_out/vision`,
`optimizer: {learning_rate: 0.001, clip: 1.0}` and `schedule: {ramp: 200}` where the file has none. All weights of the tower
are one group, with the base rate and weight decay.

## What a run leaves in its folder

| file | what |
|---|---|
| `checkpoint/` | the policy, with the running average of the weights where there is one: [checkpoints](checkpoints.md) |
| `state/step-N/` | what a resumed run needs: weights, moments, average (safetensors), the rest (JSON). It appears whole or not at all |
| `curve.csv`, `curve.png` | loss, its terms, held-out loss, gradient, rates, speed |
| `train.json` | `schema_version`, `method`, `robots`, `domains`, `steps`, `samples`, `seconds`, `parameters`, `loss`, `held_out_loss`, `settings` |
| `vision.json` | in its place with the objective vision: `scenes`, `family`, `objects`, `steps`, `seconds`, `held_out` with the median errors |
| `train.yaml` | all settings as they were, to repeat the run |
| `evaluation.json` | `schema_version`, `checkpoint`, `results`: for each robot `kind` (`simulation`, `held_out`), `verdict` (`good`, `unsure`, `not good`), `text`, and its figures |
| `tensorboard/` | with `log.tensorboard` |

## What does not depend on what

Samples, their wording and augmentation, noise and times are functions of the seed and of the sample's number in the run;
dropout of seed, step and process. So a run killed at any moment and resumed ends with the same bits, and processes,
accumulated parts and workers change the loss only by rounding (without dropout). `steps`, `batch.accumulation`,
`batch.workers`, `strategy`, `validation` and `log` may change when a run goes on, other settings not. Where things are is no
such setting: output, data, checkpoint and files of wordings may be moved, copied or named otherwise, as their content is
compared.
"""


def render() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD, *_section(TrainSettings, "", "The run", "")]
    return "\n".join(parts) + "\n" + _TAIL


def _section(model: type[BaseModel], prefix: str, title: str, text: str) -> list[str]:
    lines = [
        f"\n## {title}\n",
        *([f"{text}\n"] if text else []),
        "| setting | type | default | meaning |\n|---|---|---|---|",
    ]
    inner = []
    for name, field in model.model_fields.items():
        section = _plain(field.annotation)
        is_section = isinstance(section, type) and issubclass(section, BaseModel) and name != "augmentation"
        if not is_section or section is not field.annotation:  # a section that may be left out has a row too
            lines.append(_row(prefix + name, field))
        if is_section:
            inner += _section(section, f"{prefix}{name}.", f"`{prefix}{name}`", (section.__doc__ or "").strip())
    return lines + inner


def _plain(annotation: Any) -> Any:
    """Return the type of a value that may also be none; any other type as it is."""
    parts = get_args(annotation)
    plain = [part for part in parts if part is not type(None)]
    return plain[0] if len(plain) == 1 < len(parts) else annotation


def _row(key: str, field: FieldInfo) -> str:
    return f"| `{key}` | {_type(field)} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return "none" if value is None else f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _type(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    kind = _plain(annotation)
    origin = get_origin(kind) or kind
    names = {bool: "true, false", int: "integer", float: "number", str: "text", tuple: "list", dict: "mapping"}
    found = names.get(origin)
    if found is None:
        found = "list" if "tuple" in str(annotation) else "mapping"
    return found + _range(field)


def _range(field: FieldInfo) -> str:
    low = high = None
    opened = closed = ""
    for item in field.metadata:
        if isinstance(item, Ge | Gt):
            low, opened = (item.ge, "[") if isinstance(item, Ge) else (item.gt, "(")
        if isinstance(item, Le | Lt):
            high, closed = (item.le, "]") if isinstance(item, Le) else (item.lt, ")")
    if low is None:
        return ""
    if high is None or float(str(high)) >= 2**62:
        return f", from {low}" if opened == "[" else f" above {low}"
    return f" in {opened}{low}, {high}{closed}"


def main(target: str) -> None:
    """Write the page to ``target``."""
    Path(target).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
