"""Data: what a config names, how it is split, dealt and encoded."""
