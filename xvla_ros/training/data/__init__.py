# SPDX-License-Identifier: Apache-2.0
"""Samples: read, drawn, stored, augmented and put into batches."""
