"""Other programs that run the same checkpoint, for comparison: each in an interpreter of its own, asked over a pipe."""
