# SPDX-License-Identifier: Apache-2.0
"""X-VLA: a checkpoint becomes a policy, which answers observations with chunks of actions. Needs no ROS.

- ``checkpoint``: ``inspect`` says what a checkpoint is, ``load`` makes a policy of it, ``save`` writes one. What does
  not fit is named, file and key, all at once.
- ``policy``: ``Policy``, with ``predict`` for any robots, instructions and action modes together.
- ``random_policy``: an untrained one, where there is no checkpoint.
- ``action_modes`` and ``action_specs``: what an action means; other packages register their own.
- ``runtime.fast`` and ``runtime.int8``: the same policy faster, exactly or with an error.
- ``network`` and ``inputs``: what it is made of, for training.

``action_specs``, ``imports``, ``network.config``, ``inputs.normalisers`` and ``checkpoint`` until it loads
something import no torch.
"""
