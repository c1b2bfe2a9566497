"""Tests, one file a module; ``end_to_end`` uses the real Flower and MLflow."""
