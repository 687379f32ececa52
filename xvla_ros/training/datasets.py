"""The data a policy is trained on: recordings opened, checked, cached, and drawn from in a reproducible order.

``open_datasets(settings, waypoints=30, image_size=(224, 224), cache=folder, augmentation=…, seed=0) -> Samples``

``Samples``: ``draw(index) -> Sample``, the index-th of an endless sequence: weighted, shuffled, augmented, a function
of (seed, index) alone, so that a run resumes anywhere and process r of W takes the indices it is due; ``held_out`` and
``train``, sequences of plain samples in order; ``profiles`` {robot: Profile}; ``embodiments`` {robot: Embodiment};
``statistics(robot, state_mode, action_mode) -> model.normalisers.Statistics``.
"""

from __future__ import annotations
