"""Flower's own grids, of its simulation and of a deployment, and its lock on loading apps."""

from flwr.supercore.object_ref import _import_lock as loading
from flwr.superlink.grid import HttpGrid, InMemoryGrid

__all__ = ["HttpGrid", "InMemoryGrid", "loading"]
