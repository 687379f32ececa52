# SPDX-License-Identifier: Apache-2.0
"""What enters the network and leaves it: pictures, words, numbers."""
