# SPDX-License-Identifier: Apache-2.0
"""Episodes on disk: bags and LeRobot data sets, read and written; replay and training stand on it."""
