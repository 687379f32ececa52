# SPDX-License-Identifier: Apache-2.0
"""Training on data sets, bags and simulated scenes, on one GPU or many. Needs no ROS.

``run.train`` is the command; ``datasets.open_datasets`` gives samples, ``trainer.Trainer`` the loop.
"""
