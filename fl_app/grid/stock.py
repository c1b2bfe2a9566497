"""Flower's own grids: of its simulation, and of a deployment."""

from flwr.superlink.grid import HttpGrid, InMemoryGrid

__all__ = ["HttpGrid", "InMemoryGrid"]
