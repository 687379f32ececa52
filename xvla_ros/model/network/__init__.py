# SPDX-License-Identifier: Apache-2.0
"""The network: sizes, Florence-2 in front, the soft-prompted transformer behind, flow matching."""
