# SPDX-License-Identifier: Apache-2.0
"""From messages to an ``Observation``: pictures, joints, their plausibility and their alignment. Needs no ROS.

``builder.ObservationBuilder`` takes messages and gives an observation, or says what is missing.
"""
