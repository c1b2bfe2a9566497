"""The live page: choose, start and watch federated runs in a browser."""
