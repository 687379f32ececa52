# SPDX-License-Identifier: Apache-2.0
"""Recordings answered by a policy, and held against what followed."""
