"""The algorithm: how noise becomes latents. Works on tensors and callables; knows no model and no file."""
