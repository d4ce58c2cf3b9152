"""The algorithm: how noise becomes latents. It works on tensors and callables, and knows no model or file."""
