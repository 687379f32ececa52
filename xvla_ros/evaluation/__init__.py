# SPDX-License-Identifier: Apache-2.0
"""How well a policy does: in closed loop on tasks, and on recorded bags; the reports of both."""
