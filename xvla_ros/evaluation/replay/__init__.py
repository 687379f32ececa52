"""Recordings answered by a policy, and held against what followed."""
