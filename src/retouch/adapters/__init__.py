"""Adapters: LoRA, textual inversion, IP-Adapter and ControlNet, as functions and values that a pipeline uses."""
