# SPDX-License-Identifier: Apache-2.0
"""The node of a simulated robot, behind the topics of its profile."""
