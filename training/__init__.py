"""Train the built-in checkpoint, from downloading the pictures to the packaged folder.

Not part of the installed package: run it from the root of the repository (`python -m training.run`).
"""
