"""Editing photos of any size: the verbs on top of the pipelines."""
