# SPDX-License-Identifier: Apache-2.0
"""How a network runs: eagerly, on oneDNN, in int8, compiled, in CUDA graphs, and in which type."""
