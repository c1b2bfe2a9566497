"""Federated learning experiments: Flower federates, Hydra configures, MLflow keeps every round."""
