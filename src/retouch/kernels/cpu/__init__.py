"""Faster layers and attention on a CPU, multiplication in 8 bits, and memory that is kept during a call."""
