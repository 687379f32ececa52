"""The settings of a vision tower's pretraining."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from xvla_ros.training.config import Batch, Ema, Model, Optimizer, Output, Schedule, Validation
from xvla_ros.training.dataset_settings import DataSection, Scenes


class VisionSettings(DataSection):
    """Everything about one pretraining. Of ``model`` the sizes and ``vision_from`` count."""

    schema_version: Literal[1] = Field(1, description="Version of these settings.")
    output: str = Field("xvla_out/vision", min_length=1, description="Folder of the run.")
    resume: bool = Field(False, description="Go on from the folder's last state, if it has one.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of weights and pictures.")
    steps: int = Field(20000, ge=1, description="Steps of the optimiser.")
    scenes: Scenes = Field(min_length=1, description="What is drawn.")
    variation: float = Field(1.0, ge=0.0, description="Of light, colours and cameras; 1 as in demonstrations.")
    pixels: int = Field(256, ge=16, le=2048, description="Of the pictures as drawn; the network's size comes after.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the computation; auto: the fastest on the device."
    )
    model: Model = Field(Model(), description="The network whose tower is trained.")
    optimizer: Optimizer = Field(Optimizer(learning_rate=1e-3, clip=1.0), description="AdamW, one rate for all.")
    schedule: Schedule = Field(Schedule(ramp=200), description="Of it ramp, decay and final_scale count.")
    batch: Batch = Field(Batch(), description="Samples of a step; each has all views of a robot.")
    ema: Ema = Field(Ema(), description="Average of the weights.")
    validation: Validation = Field(Validation(), description="On pictures that training never draws.")
    log: Output = Field(Output(), description="What the run writes.")
