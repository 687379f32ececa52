"""The policy node: one policy, many robots, their topics."""
