"""Flower's ServerApp: fl_app's, and what it has to know besides."""

from fl_app.server_app import app
from shown import csv_tracker, halfway, parquet_folder, torch_model  # noqa: F401

__all__ = ["app"]
