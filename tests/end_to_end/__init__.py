"""Tests through the real Flower, MLflow and command line."""
