"""The task of ``benchmarks.peers`` in fed-playground: its Orchestrator and a Party a client.

It has neither a softmax regression nor a mean weighted by rows, so that both are written here
at its extension points, ``Model`` and ``AggregationStrategy``. Its Environment would divide the
rows itself and score every client in every round.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from fed_playground import AggregationStrategy, Model, NoEncryption, Orchestrator, Party


class SoftmaxRegression(Model):
    """Learns one epoch of SGD at a time; its parameters are one flat array."""

    def __init__(
        self, num_features: int, num_classes: int, rate: float, size: int, rng: np.random.Generator
    ) -> None:
        self.shape = (num_features, num_classes)
        self.rate, self.size, self.rng = rate, size, rng
        self.set_parameters(np.zeros((num_features + 1) * num_classes))

    def get_parameters(self) -> np.ndarray:
        return self.flat

    def set_parameters(self, params: np.ndarray) -> None:
        self.flat = params.copy()
        self.weights = self.flat[: -self.shape[1]].reshape(self.shape)
        self.bias = self.flat[-self.shape[1] :]

    def train(self, X: np.ndarray, y: np.ndarray) -> None:
        order = self.rng.permutation(len(X)) if len(X) > self.size else None
        for first in range(0, len(X), self.size):
            chosen = None if order is None else order[first : first + self.size]
            xb, yb = (X, y) if chosen is None else (X[chosen], y[chosen])
            z = xb @ self.weights + self.bias
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(yb)), yb] -= 1
            p *= self.rate / len(yb)
            self.weights -= xb.T @ p
            self.bias -= p.sum(axis=0)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return (X @ self.weights + self.bias).argmax(axis=1)

    def evaluate(self, X: np.ndarray, y: np.ndarray) -> float:
        return float((self.predict(X) == y).mean())


class WeightedMean(AggregationStrategy):
    """Averages the updates by n_k/N."""

    def __init__(self, sizes: np.ndarray) -> None:
        self.shares = sizes / sizes.sum()

    def aggregate(self, encrypted_models: list[Any], encryption_scheme: Any) -> Any:
        return self.shares @ np.stack(encrypted_models)


def main(path: str, num_clients: int, rounds: int, size: int, rate: float) -> None:
    with np.load(path) as rows:
        x, y, sizes, test_x, test_y = (rows[k] for k in ("x", "y", "sizes", "test_x", "test_y"))
    ends = np.cumsum(sizes)[:-1]
    clients = list(zip(np.split(x, ends), np.split(y, ends), strict=True))
    assert len(clients) == num_clients
    rng, scheme, num_classes = np.random.default_rng(0), NoEncryption(), int(y.max()) + 1
    model = SoftmaxRegression(x.shape[1], num_classes, rate, size, rng)
    server = Orchestrator(WeightedMean(sizes), scheme, model.get_parameters())
    for k, own in enumerate(clients):
        learner = SoftmaxRegression(x.shape[1], num_classes, rate, size, rng)
        server.register_party(Party(k, learner, own, scheme))
    times, accuracy = [], 0.0
    for _ in range(rounds):
        server.distribute_model()
        for party in server.parties:
            party.train_local_model()
        server.aggregate_models()
        model.set_parameters(server.global_model_params)
        accuracy = model.evaluate(test_x, test_y)
        times.append(time.perf_counter())
    told = {
        "seconds_per_round": (times[-1] - times[0]) / (rounds - 1),
        "accuracy": accuracy,
        "version": version("fed-playground"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), rate=float(sys.argv[5]))
