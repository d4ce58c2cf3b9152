"""Families of checkpoints: what is particular to each, as values that a pipeline holds."""
