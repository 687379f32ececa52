"""Samples: read, drawn, stored, augmented and put into batches."""
