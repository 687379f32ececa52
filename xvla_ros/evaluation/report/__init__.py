# SPDX-License-Identifier: Apache-2.0
"""The page, plots and film of a recorded run, from its bag."""
