"""Adapters of a pipeline: LoRA, textual inversion, IP-Adapter and ControlNet."""
