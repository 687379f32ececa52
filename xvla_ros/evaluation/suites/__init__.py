# SPDX-License-Identifier: Apache-2.0
"""A policy on a benchmark that others wrote: episodes driven, many of them run and kept, and what they amount to."""
