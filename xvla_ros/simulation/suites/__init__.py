# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that others wrote, with judges of their own: tasks, episodes, and how a policy is put to them.

``suite`` states the way through each of them (tasks, reset, look, act, judged), ``protocols`` the choices that a
published number stands on, ``libero`` is LIBERO and LIBERO-PRO. A benchmark runs in an interpreter of its own, as each
wants other releases of the same packages than this one: ``worker`` starts it and ``libero_worker`` is what runs there.
"""
