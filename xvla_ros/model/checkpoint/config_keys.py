# SPDX-License-Identifier: Apache-2.0
"""What each key of a ``config.json`` does to an answer. No torch here.

Keys that are read here shape the network or what it is given. Of every other key it matters only whether it can change
an answer: one that cannot is a warning, so that checkpoints of a newer LeRobot or of a fork load; one that can is an
error. Keys nobody listed are judged by their value and by the words of their name; what is left open is decided by the
weights, see ``weights.load_network``: a key that adds a layer leaves them incomplete or too many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xvla_ros.errors import Problem, did_you_mean

SHARED_INTS = ("hidden_size", "depth", "num_heads", "num_domains", "len_soft_prompts", "dim_time", "max_len_seq")
_READ = {
    *SHARED_INTS, "mlp_ratio", "use_hetero_proj", "action_mode", "use_proprio", "max_action_dim", "florence_config",
}  # fmt: skip
_READ_OF_LEROBOT = _READ | {
    "type", "chunk_size", "max_state_dim", "num_denoising_steps", "tokenizer_name", "tokenizer_max_length", "dtype",
    "num_image_views", "resize_imgs_with_padding", "normalization_mapping", "input_features", "output_features",
    "empty_cameras",
}  # fmt: skip
# What transformers' own base class writes into any config.json.
_READ_OF_ORIGINAL = _READ | {
    "num_actions", "soft_prompt_length", "real_action_dim", "idx_for_delta", "idx_for_mask_proprio", "architectures",
    "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
}  # fmt: skip

# Keys that every LeRobot from 0.4.4 on writes and reads, about training, hub and execution: kept for saving.
PASSED_ON = {
    "n_obs_steps", "n_action_steps", "input_features", "output_features", "device", "use_amp", "use_peft",
    "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "tokenizer_padding_side",
    "pad_language_to", "domain_feature_key", "empty_cameras", "freeze_vision_encoder", "freeze_language_encoder",
    "train_policy_transformer", "train_soft_prompts", "optimizer_lr", "optimizer_betas", "optimizer_eps",
    "optimizer_weight_decay", "optimizer_grad_clip_norm", "optimizer_soft_prompt_lr_scale",
    "optimizer_soft_prompt_warmup_lr_scale", "scheduler_warmup_steps", "scheduler_decay_steps", "scheduler_decay_lr",
}  # fmt: skip
# Keys of LeRobot 0.6, of forks and of transformers' base class that change no answer. They are not written again: an
# older LeRobot refuses a key it does not know.
_WITHOUT_EFFECT = {
    "pretrained_revision", "compile_model", "compile_mode", "gradient_checkpointing", "rtc_config", "use_cache",
    "_name_or_path", "_commit_hash", "_attn_implementation_autoset", "attn_implementation", "_attn_implementation",
    "id2label", "label2id", "num_labels", "problem_type", "return_dict", "output_attentions", "output_hidden_states",
    "torchscript", "finetuning_task", "task_specific_params", "is_encoder_decoder", "tie_word_embeddings",
    "chunk_size_feed_forward", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
}  # fmt: skip
# Keys that change an answer, and the values at which they do what this network does anyway.
_ONLY_AT: dict[str, tuple[Any, ...]] = {
    "n_obs_steps": (1,),
    "tokenizer_padding_side": ("right",),
    "pad_language_to": ("max_length",),
    "use_delta": (False, None),
    "use_delta_actions": (False, None),
    "use_relative_actions": (False, None),
    "use_delta_joint_actions_aloha": (False, None),
    "adapt_to_pi_aloha": (False, None),
    "prefix_length": (0, -1, None),
    "attention_mode": ("full", None),
    "time_sampling": ("uniform", None),
    "prediction_type": ("sample", "clean", None),
}
# Words in the name of a key that nobody listed.
_ABOUT_TRAINING = {
    "optimizer", "scheduler", "lr", "learning", "warmup", "decay", "freeze", "frozen", "unfreeze", "train",
    "training", "trainable", "finetune", "finetuning", "grad", "gradient", "gradients", "checkpointing", "compile",
    "loss", "losses", "ema", "augment", "augmentation", "augmentations", "aug", "seed", "log", "logging", "wandb",
    "hub", "repo", "revision", "private", "license", "tags", "author", "version", "path", "dir", "file", "cache",
    "worker", "workers", "peft", "lora", "amp", "debug", "verbose", "description", "comment", "note", "notes", "name",
    "date", "created", "save", "eval", "validation", "batch", "epochs", "dataset", "datasets",
}  # fmt: skip
_ABOUT_ANSWERS = {
    "action", "actions", "state", "states", "proprio", "proprioception", "image", "images", "img", "imgs", "camera",
    "cameras", "view", "views", "pixel", "pixels", "video", "resize", "crop", "pad", "padding", "norm", "normalize",
    "normalization", "normalizer", "mean", "std", "scale", "token", "tokens", "tokenizer", "text", "language",
    "prompt", "prompts", "instruction", "domain", "domains", "embodiment", "delta", "relative", "absolute", "idx",
    "index", "flow", "noise", "denoise", "denoising", "diffusion", "sampler", "sampling", "sample", "step", "steps",
    "time", "timestep", "horizon", "chunk", "mask", "rotation", "rot6d", "gripper", "dim", "dims", "width", "size",
    "num", "layer", "layers", "hidden", "head", "heads", "depth", "attention", "attn", "mode", "mlp", "activation",
    "temperature", "temporal", "fps", "dt", "history", "memory", "ensemble", "guidance", "vision", "vlm", "encoder",
    "decoder",
}  # fmt: skip


@dataclass(frozen=True)
class KeyVerdicts:
    """What was made of the keys that are not read.

    Attributes:
        problems: of keys that can change an answer.
        warnings: of keys that cannot.
        undecided: keys of which only the weights can tell; each has a warning, too.
    """

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    undecided: tuple[str, ...] = ()


def judge(data: Mapping[str, Any], file: str, *, is_original: bool) -> KeyVerdicts:
    """Judge every key of a ``config.json`` that is not read.

    Args:
        data: its content.
        file: its name, for messages.
        is_original: it is of the original authors' dialect.
    """
    read = _READ_OF_ORIGINAL if is_original else _READ_OF_LEROBOT
    silent = read if is_original else read | PASSED_ON - set(_ONLY_AT)
    problems, warnings, undecided = [], [], []
    for key in sorted(set(data) - silent):
        value = data[key]
        if key in _ONLY_AT:
            if value not in _ONLY_AT[key]:
                expected = " or ".join(map(_as_json, _ONLY_AT[key]))
                problems.append(
                    Problem(
                        file,
                        key,
                        value,
                        expected,
                        "changes the policy's output in a way that this package does not support",
                    )
                )
            elif key not in PASSED_ON:
                warnings.append(
                    Problem(file, key, value, "", "is ignored: at this value it does not change the policy's output")
                )
        elif key in _WITHOUT_EFFECT:
            warnings.append(Problem(file, key, value, "", "is ignored: it does not change the policy's output"))
        elif not value:
            warnings.append(Problem(file, key, value, "", "is unknown and ignored: it is off"))
        elif _words(key) & _ABOUT_TRAINING:
            message = "is unknown and ignored: by its name it does not change the policy's output"
            warnings.append(Problem(file, key, value, "", message))
        elif _words(key) & _ABOUT_ANSWERS:
            message = (
                f"is unknown{did_you_mean(key, read)} and by its name may change the policy's output; remove it if it "
                "does not"
            )
            expected = "null, false or 0, or one of the keys of an X-VLA config.json"
            problems.append(Problem(file, key, value, expected, message))
        else:
            message = "is unknown and ignored, because the weights are complete without it"
            warnings.append(Problem(file, key, value, "", message))
            undecided.append(key)
    return KeyVerdicts(tuple(problems), tuple(warnings), tuple(undecided))


def _words(key: str) -> set[str]:
    return set(key.lower().replace("-", "_").replace(".", "_").split("_"))


def _as_json(value: Any) -> str:
    return json.dumps(value)
