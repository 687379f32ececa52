"""The node of a simulated robot, behind the topics of its profile."""
