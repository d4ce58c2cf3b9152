"""Layers that compute the same as the plain ones, faster on a CPU: see prepare.py."""
