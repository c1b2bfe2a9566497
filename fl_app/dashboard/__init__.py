"""The live page: an interactive simulator of federated learning."""
