"""Federated learning experiments: Flower federates, Hydra configures, MLflow keeps every round."""

__version__ = "0.1.0"
