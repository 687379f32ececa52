# SPDX-License-Identifier: Apache-2.0
"""What a run minimises: the flow-matching loss of a policy, and where the named thing is (grounding).

``vision`` has the other objective. A trainer knows an objective by ``Objective`` alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from xvla_ros.errors import Problem
from xvla_ros.model.action_modes import Losses
from xvla_ros.model.action_specs import ACTION_SPECS
from xvla_ros.model.inputs.words import words_of
from xvla_ros.model.network.flow import flow_loss, training_times
from xvla_ros.model.network.xvla import XvlaNetwork
from xvla_ros.model.policy import Policy
from xvla_ros.training.config import TrainingError, TrainSettings
from xvla_ros.training.data import draws
from xvla_ros.training.data.batches import Preparation, SampleSource, Share, TrainingBatch
from xvla_ros.training.data.features import Features, TowerRun, compute, features_name
from xvla_ros.training.data.samples import PLACE_UNIT, Sample
from xvla_ros.training.optim import GROUNDING, WeightGroup, add_lora, make_groups, phase, trainable

log = logging.getLogger(__name__)

SHARP = 0.05  # of a length unit below, or of half a picture: errors above it count linearly, not by their square
MOST_WORDS = 2000  # that a checkpoint keeps of its training
_HELD_OUT = 2**62  # where the numbers of held-out samples begin in the draws of noise, beyond those of any run


class Objective(Protocol):
    """What a run minimises, with all of a run that depends on it.

    Attributes:
        domains: that the run trains.
        summary_file: name of the file with the summary.
    """

    domains: tuple[int, ...]
    summary_file: str

    @property
    def module(self) -> nn.Module:
        """A batch in, its loss and terms out; one module, which a wrapper for several processes can take."""

    @property
    def collate(self) -> Callable[[Sequence[Any]], Any]:
        """Samples of the source to a batch, in the loading processes too."""

    def groups(self) -> dict[str, WeightGroup]:
        """Return the weights that move, by the name of their group, as they are after wrapping."""

    def phase(self, step: int) -> str:
        """Name the phase that the step with this number, from 0, belongs to."""

    def held_out(self, share: Share) -> Sequence[tuple[Any, float]]:
        """Return this process's batches of held-out samples and their weights; every process has the same number."""

    def errors(self, batch: Any) -> Mapping[str, list[float]]:
        """Measure held-out samples beside the loss: values by name, whose median goes into the row."""

    def summary(self, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the content of the summary's file, from the trainer's facts and the rows of the table."""

    def history(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the checkpoint keeps of the training."""

    def about(self, summary: Mapping[str, Any]) -> list[str]:
        """Return lines for a person, before the run."""

    def outcome(self, summary: Mapping[str, Any]) -> list[str]:
        """Return lines for a person, after the run."""


class Flow:
    """The loss of a policy's flow and that of ``Grounding``, one of them or both; see ``Objective``.

    Args:
        settings: of the run.
        source: the data.
        policy: from ``start.make_policy``; its network is trained in place.
        accelerator: from ``parallel.connect``.

    Raises:
        TrainingError: ``train_domains`` names a robot that the data does not have, or ``grounding`` is asked for of
            recordings that hold no places.
    """

    summary_file = "train.json"

    def __init__(self, settings: TrainSettings, source: SampleSource, policy: Policy, accelerator: Accelerator) -> None:
        self.settings, self.source, self.policy, self.accelerator = settings, source, policy, accelerator
        self.network = policy.network
        self.preparation = self._preparation()
        self.collate = self.preparation.batch
        self.domains = self._domains()
        if settings.method == "lora":
            add_lora(self.network, settings.lora, settings.seed)
        if settings.grounding:
            _ensure_places(settings, source)
            add_grounding(self.network, settings.seed)
        self._held_out = self._preparations()
        self.module = FlowLoss(self.network, settings.grounding, settings.flow)

    def _domains(self) -> tuple[int, ...]:
        embodiments = self.source.embodiments
        chosen = self.settings.train_domains if self.settings.method == "prompt" else ()
        unknown = [name for name in chosen if name not in embodiments]
        if unknown:
            expected = "robots of the data: " + ", ".join(embodiments)
            raise TrainingError([Problem("", "train_domains", unknown, expected, "is not a robot of the data")])
        return tuple(sorted(embodiments[name].domain_id for name in chosen or embodiments))

    def _preparation(self) -> Preparation:
        settings = self.settings
        return Preparation(self.policy, settings.seed, settings.batch.size, masked=settings.loss.padding == "masked")

    def _preparations(self) -> Preparation:
        """Set up kept features where they are asked for; return the preparation of held-out samples."""
        if not self.settings.features:
            return self.preparation
        held_out = self._preparation()
        if self.settings.drawn is not None:
            dtype = torch.bfloat16 if self.settings.precision == "bfloat16" else torch.float32
            self.preparation.features = TowerRun(self.network, dtype, keep=self.settings.drawn.kept)
            held_out.features = self.preparation.features
            return held_out
        with self.accelerator.main_process_first():
            self.preparation.features = self._features("train", self.source.train)
            if len(self.source.held_out):
                held_out.features = self._features("held_out", self.source.held_out)
        return held_out

    def _features(self, part: str, samples: Sequence[Sample]) -> Features:
        views = self.network.config.num_image_views or 1
        file = Path(self.settings.cache) / features_name(self.network, self.source.fingerprint, part, views)
        say = log.info if self.accelerator.is_main_process else lambda text: None
        return compute(self.network, self.policy.processor, samples, file, self.accelerator.device, say)

    def groups(self) -> dict[str, WeightGroup]:
        return make_groups(self.network, trainable(self.network, self.settings))

    def phase(self, step: int) -> str:
        return "prompt" if self.settings.method == "prompt" else phase(self.settings.schedule, step)

    def held_out(self, share: Share) -> list[tuple[TrainingBatch, float]]:
        """Return the same samples, noise and times every time, so that measurements can be compared."""
        source, settings, preparation = self.source, self.settings, self._held_out
        chosen = _spread(len(source.held_out), settings.validation.samples)
        if not chosen:
            return []
        offset = draws.generator(settings.seed, "held out").random(1, dtype=np.float32)
        times = training_times(len(chosen), torch.from_numpy(offset))
        made = []
        for cut, weight in share.cuts(len(chosen)):
            samples = [source.held_out[chosen[place]] for place in cut]
            noise = preparation.noise([_HELD_OUT + place for place in cut])
            made.append((preparation.tensors(samples, noise, times[cut.start : cut.stop]), weight))
        return made

    def errors(self, batch: TrainingBatch) -> dict[str, list[float]]:
        return {}

    def summary(self, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        settings, held_out = self.settings, [row["held_out"] for row in rows if row.get("held_out") is not None]
        return {
            "schema_version": 1,
            "method": settings.method,
            "from": settings.model.checkpoint or f"scratch ({settings.model.size})",
            "robots": {
                name: {"domain_id": each.domain_id, "action_mode": self.preparation.modes[name].name}
                for name, each in self.source.embodiments.items()
            },
            "domains": list(self.domains),
            "training_samples": len(self.source.train),
            "held_out_samples": len(self.source.held_out),
            **facts,
            "loss": rows[-1]["loss"] if rows else None,
            "held_out_loss": held_out[-1] if held_out else None,
            "settings": settings.model_dump(mode="json"),
        }

    def history(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Return the summary, with that of the checkpoint the run began from."""
        own = {key: value for key, value in summary.items() if key != "schema_version"}
        own["words"] = sorted(words_of(self.source.instructions))[:MOST_WORDS]
        # Paths of the machine that trained are private.
        settings = {key: value for key, value in own["settings"].items() if key not in ("output", "cache", "log")}
        named = {key: _name(settings["model"][key]) for key in ("checkpoint", "vision_from")}
        settings["model"] = {**settings["model"], **named}
        if settings["drawn"]:
            settings["drawn"] = {**settings["drawn"], "played_by": _name(settings["drawn"]["played_by"])}
        settings["datasets"] = [
            {**each, "paths": [_name(path) for path in each["paths"]]} for each in settings["datasets"]
        ]
        own.update({"settings": settings, "from": _name(own["from"])})
        before = {key: value for key, value in self.policy.training.details.items() if key != "settings"}
        return {**own, "before": before} if before else own

    def about(self, summary: Mapping[str, Any]) -> list[str]:
        lines = ["  ".join(f"{key}: {value}" for key, value in row.items()) for row in self.source.summary()]
        lines += [f"  {line}" for line in self.source.left_out()]
        tokenizer, trained = self.policy.processor.tokenizer, self.policy.training.words
        if self.settings.model.checkpoint and (new := tokenizer.unknown(" ".join(self.source.instructions), trained)):
            lines.append(f"  note: the checkpoint was not yet trained with these words: {', '.join(new)}")
        counts = summary["parameters"]
        parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name not in ("total", "trained"))
        return [
            *lines, f"{summary['method']}: trains {counts['trained']:,} of {counts['total']:,} parameters ({parts})"
        ]  # fmt: skip

    def outcome(self, summary: Mapping[str, Any]) -> list[str]:
        steps, loss, took = summary["steps"], summary["loss"], summary["seconds"]
        return [f"{self.settings.output}/checkpoint: {steps} steps, loss {loss:.5g}, {took:.0f} s"]


def _spread(count: int, most: int) -> Sequence[int]:
    """Choose at most ``most`` of ``count`` places, evenly."""
    return range(count) if count <= most else [place * count // most for place in range(most)]


def _name(path: str) -> str:
    """Return the last part of a path of this machine; anything else, such as a hub id, as it is."""
    return Path(path).name if Path(path).is_absolute() or Path(path).exists() else path


class FlowLoss(nn.Module):
    """The flow-matching loss of a network, and that of ``Grounding`` where the network was given one.

    Args:
        network: to train.
        grounding: weight of the latter.
        flow: whether there is the former.
    """

    def __init__(self, network: XvlaNetwork, grounding: float = 0.0, flow: bool = True) -> None:
        super().__init__()
        self.network, self.grounding, self.flow = network, grounding, flow

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Losses]:
        """Return the loss of a batch, and its terms."""
        network, seen = self.network, batch.seen
        vlm, aux = network.vlm(seen.images, seen.image_mask, seen.input_ids, grids=batch.grids)
        loss, terms = self._flow(vlm, aux, batch) if self.flow else (vlm.sum() * 0.0, {})
        if self.grounding and batch.places is not None:
            words = vlm[:, -seen.input_ids.shape[1] :]
            layer = cast(Grounding, network.get_submodule(GROUNDING))
            terms = {**terms, "grounding": self.grounding * layer(words, batch.places)}
            loss = loss + terms["grounding"]
        return loss, terms

    def _flow(self, vlm: Tensor, aux: Tensor, batch: TrainingBatch) -> tuple[Tensor, Losses]:
        network, seen = self.network, batch.seen
        context = network.transformer.context(vlm, aux, seen.domain_id, network.config.chunk_size)
        modes = [network.mode(name, width) for name, width in batch.modes]
        return flow_loss(
            network, context, seen.state, batch.action, modes, times=batch.times, noise=batch.noise, known=batch.known
        )


class Grounding(nn.Module):
    """Reads from the encoded words where the thing is that they name.

    The flow's loss says only how far a chunk is off, under noise, so it teaches slowly which of several things is meant
    and where exactly that is. Asked for outright, the encoder soon carries the answer in the tokens that the policy
    reads. This layer is part of the network while it is trained, and of no checkpoint.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, 3)

    def forward(self, words: Tensor, places: Tensor) -> Tensor:
        """Return the loss of the places read from the words, over the samples whose place is known.

        Args:
            words: [B, L, W], the encoder's output for the text.
            places: [B, 3], as of ``Sample.place``, NaN where it is not known; of one sample at least it is.
        """
        with torch.autocast(words.device.type, enabled=False):
            found: Tensor = self.read(self.norm(words.float().mean(dim=1)))
            known = places.isfinite().all(dim=1)
            return functional.smooth_l1_loss(found[known], places[known] / PLACE_UNIT, beta=SHARP)


def _ensure_places(settings: TrainSettings, source: SampleSource) -> None:
    """Refuse to ask where things are of recordings that cannot tell."""
    modes = {each.action_mode for each in source.embodiments.values()}
    if settings.drawn is None and not any(ACTION_SPECS[mode].is_end_effector for mode in modes):
        robots, expected = ", ".join(source.embodiments), "a robot whose actions are tool poses, or generated samples"
        raise TrainingError([Problem("", "grounding", robots, expected, "the position of the named object is unknown")])


def add_grounding(network: XvlaNetwork, seed: int) -> None:
    """Give a network the layer ``Grounding``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_module(GROUNDING, Grounding(network.config.text.d_model))
