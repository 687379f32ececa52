"""The settings of the data a policy is trained on: an entry of ``datasets`` in a training file, and augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xvla_ros.recordings.lerobot_recording import LeRobotMapping

Strings = Annotated[tuple[str, ...], Field(strict=False)]
Size = Annotated[tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]], Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False)]


class DataSection(BaseModel):
    """Part of the settings. Unknown keys and wrong types are refused; an integer passes for a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Split(DataSection):
    """Which episodes are kept from training, to measure the loss on."""

    fraction: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the episodes that is held out.")
    seed: int = Field(0, ge=0, description="Of the choice of these episodes.")


class Early(DataSection):
    """Samples of the beginning of an episode, where what was said decides which way to go, come more often."""

    seconds: float = Field(0.0, ge=0.0, description="From the first picture of an episode; 0 prefers none.")
    times: int = Field(3, ge=1, le=100, description="How often such a sample comes where another comes once.")


class DatasetSettings(DataSection):
    """One data set: recordings of one robot, all read alike."""

    kind: Literal["bag", "lerobot"] = Field("bag", description="bag (mcap, sqlite3) or lerobot (v2.1, v3).")
    paths: Strings = Field(min_length=1, description="Bags or data set folders; patterns with * and ** are expanded.")
    robot: str = Field("", description="Name of a profile or a profile file; empty takes the bag's own.")
    domain_id: int | None = Field(None, ge=0, le=65535, description="Instead of the profile's.")
    weight: float = Field(1.0, gt=0.0, description="Share of this data set in every batch, relative to the others.")
    actions: Literal["auto", "planned", "commanded", "measured"] = Field(
        "auto",
        description="What the waypoints are: planned (the newest whole trajectory at the observation), commanded (what "
        "a controller makes of the command topics, or LeRobot's action), measured (where the joints were later), auto "
        "(planned where the marks of every episode say so, else commanded where every group has commands, else "
        "measured).",
    )
    rate: float | None = Field(
        None, gt=0.0, le=1000.0, description="Samples a second, Hz; none takes each picture of slot 0."
    )
    instruction: str = Field("", description="Instead of what was recorded.")
    instructions: dict[str, Strings] = Field({}, description="Instruction → paraphrases, one of which is drawn.")
    instructions_file: str = Field("", description="YAML file with more of them.")
    only_successes: bool = Field(True, description="Leave out episodes marked as failed.")
    skip_bad: bool = Field(False, description="Leave out recordings with problems instead of refusing them.")
    split: Split = Split()
    early: Early = Field(Early(), description="Samples of the beginning of episodes, more often.")
    mapping: LeRobotMapping = LeRobotMapping()

    @model_validator(mode="after")
    def _named_robot(self) -> DatasetSettings:
        if self.kind == "lerobot" and not self.robot:
            raise ValueError("a LeRobot data set knows no profile: set robot to the name of one, or to a profile file")
        return self


class Augmentation(DataSection):
    """Random changes of the pictures, alike for the views of a sample where not said otherwise."""

    brightness: float = Field(0.0, ge=0.0, le=1.0, description="Factor is drawn from 1 ± this; each view its own.")
    contrast: float = Field(0.0, ge=0.0, le=1.0, description="Factor about the picture's mean, drawn from 1 ± this.")
    saturation: float = Field(0.0, ge=0.0, le=1.0, description="Factor about grey, drawn from 1 ± this.")
    hue: float = Field(0.0, ge=0.0, le=0.5, description="Turn of the colours, drawn from ± this of a full turn.")
    noise: float = Field(0.0, ge=0.0, le=0.5, description="Standard deviation of noise on each pixel, of full scale.")
    shift: float = Field(0.0, ge=0.0, le=0.5, description="Translation drawn from ± this share of the size.")
    zoom: float = Field(0.0, ge=0.0, lt=1.0, description="Scale drawn from 1 ± this.")
    probability: float = Field(1.0, ge=0.0, le=1.0, description="Share of the samples that is changed at all.")
    drop_view: float = Field(0.0, ge=0.0, lt=1.0, description="Probability that a view other than slot 0 is masked.")


class SceneSettings(DataSection):
    """A simulated scene that pictures are drawn of."""

    robot: str = Field(min_length=1, description="Name of a profile, or a profile file.")
    task: str = Field("touch", min_length=1, description="Of the robot's scene: it says where things lie.")
    weight: float = Field(1.0, gt=0.0, description="Share of this scene in every batch, relative to the others.")


Scenes = Annotated[tuple[SceneSettings, ...], Field(strict=False)]


class Drawn(DataSection):
    """Samples without end from the simulator: no layout comes twice. Not together with data sets."""

    scenes: Scenes = Field(min_length=1, description="What is drawn.")
    goals: int = Field(2, ge=1, le=16, description="Samples of every layout: instructions of a picture, or pictures.")
    variation: float = Field(1.0, ge=0.0, description="Of light, colours and cameras; 1 as in demonstrations.")
    pixels: int = Field(256, ge=16, le=2048, description="Of the pictures as drawn; the network's size comes after.")
