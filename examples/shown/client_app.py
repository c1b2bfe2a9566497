"""Flower's ClientApp: fl_app's, and what clients have to know."""

from fl_app.client_app import app
from shown import halfway, parquet_folder, torch_model  # noqa: F401

__all__ = ["app"]
