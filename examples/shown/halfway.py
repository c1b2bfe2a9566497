"""``strategy=halfway``: FedAvg that goes only a share of the way."""

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

from fl_app.config import StrategyConfig, opt, register


@dataclass(frozen=True)
class HalfwayConfig(StrategyConfig):
    """The model moves a share of the way to the clients' mean."""

    name: str = "halfway"
    share: float = opt(0.5, "Share of the way.", gt=0, le=1)


class Halfway(FedAvg):
    """Flower's FedAvg with one method changed, and one that remembers."""

    def __init__(self, share, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def configure_train(self, server_round, arrays, config, grid):
        """Remember what is sent."""
        self.sent = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """Go a share of the way."""
        mean, metrics = super().aggregate_train(server_round, replies)
        way = {k: self.share * (mean[k].numpy() - old) for k, old in self.sent.items()}
        return ArrayRecord({k: Array(self.sent[k] + way[k]) for k in way}), metrics

    def state_dict(self):
        """Nothing outlasts a round, so a run that broke off can go on."""
        return {}

    def load_state_dict(self, state):
        """Take :meth:`state_dict` back."""


def build(own, roster, learning_rate, config, predictor):
    """Build it; the grid that it sees holds the cohort of a round alone, however small."""
    return Halfway(own.share, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


register(HalfwayConfig, build=build)
