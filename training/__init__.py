"""Trains the checkpoint that ships inside the package, from nothing to the packaged folder.

Not part of the installed package: run it from the root of the repository (`python -m training.run`).
"""
