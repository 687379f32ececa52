# SPDX-License-Identifier: Apache-2.0
"""Imports of thousands of modules in three quarters of the time. No torch here."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector out of a block that makes many objects which all stay, such as a large import.

    The collector would go over all of them again and again: with torch and transformers that is a quarter of the time.
    It counts for the whole process, and is as it was afterwards.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def kept_for_good() -> Iterator[None]:
    """Pause the collector as ``collector_paused`` does; objects that exist at the end are never collected again.

    For a process that needs its imports until it ends, before it makes anything that it will free: a full collection
    over the half million objects of torch and transformers stops all threads for tenths of a second. Only the first
    such block of a process keeps, because a later one might find a policy waiting to be freed.
    """
    with collector_paused():
        yield
        if not gc.get_freeze_count():
            gc.freeze()
