# SPDX-License-Identifier: Apache-2.0
"""Control of one robot in time: from chunks to windows of commands, without ROS.

Read ``pilot`` first (messages in, commands out), then ``controller`` and ``state`` (what is sent, held and
stopped), ``plan`` (from a path to a command), ``limiter`` (the limits), ``engine`` (the policy beside it).

Two threads meet here: the inference thread asks and delivers, the executor takes messages, ticks and stops. These locks
keep them apart, always taken in this order, and none is held while a policy computes or a picture is decoded:

1. ``RobotLink._sending``, in the node: from the tick to the last publisher, and over the last window of a stop, so that
   commands leave in the order in which they were computed. Nothing ticks without it.
   ``RunPolicyServer._lock``, in the node: which goal runs. Never together with the one above.
2. ``RobotController._lock``: state, plan, last command, latencies. Each public method takes it by itself.
3. ``ObservationBuilder._lock``: what messages have brought. Held only to copy or to add, never around another lock.

The pilot itself has none. What it keeps of its newest chunk is set by the inference thread, its
instruction by the executor, and each is read as one value.
"""
