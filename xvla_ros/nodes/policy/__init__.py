# SPDX-License-Identifier: Apache-2.0
"""The policy node: one policy, many robots, their topics."""
