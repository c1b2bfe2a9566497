"""``model=torch_mlp``: a PyTorch module; torch is imported when it is built, not before."""

from dataclasses import dataclass, field

from fl_app.config import ModelConfig, opt, register
from fl_app.models.base import descend


@dataclass(frozen=True)
class TorchMlpConfig(ModelConfig):
    """A perceptron of PyTorch's."""

    name: str = "torch_mlp"
    width: int = opt(16, "Units of the hidden layer.", ge=1)


@dataclass
class TorchMlp:
    """Its parameters by their names; PyTorch gives the gradient, :func:`descend` steps."""

    config: TorchMlpConfig
    num_features: int
    num_outputs: int
    task: str
    net: object = field(init=False)

    def __post_init__(self):
        import torch

        width, dtype = self.config.width, getattr(torch, self.config.dtype)
        layers = torch.nn.Linear(self.num_features, width), torch.nn.Linear(width, self.num_outputs)
        self.net = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1]).to(dtype)

    def start(self, rng):
        """Draw from the run's own generator: no global seed of PyTorch's decides."""
        shapes = {name: tuple(value.shape) for name, value in self.net.named_parameters()}
        drawn = {name: rng.normal(scale=0.1, size=shape) for name, shape in shapes.items()}
        return {name: value.astype(self.config.dtype) for name, value in drawn.items()}

    def fit(self, arrays, x, y, rng, proximal_mu=0.0, learning_rate=None):
        """Run the usual mini-batch descent."""
        return descend(self.config, self.gradient, arrays, x, y, rng, proximal_mu, learning_rate)

    def gradient(self, arrays, x, y):
        """Return the gradient of the loss with its penalty over the rows."""
        import torch

        self.net.zero_grad()
        own = self._load(arrays)
        said, truth = self.net(torch.as_tensor(x)), torch.as_tensor(y)
        if self.task == "classification":
            loss = torch.nn.functional.cross_entropy(said, truth.long())
        else:
            loss = 0.5 * (said - truth).square().sum(1).mean()
        penalty = sum(value.square().sum() for name, value in own.items() if "weight" in name)
        (loss + 0.5 * self.config.l2 * penalty).backward()
        return {name: value.grad.numpy().copy() for name, value in own.items()}

    def predict(self, arrays, x):
        """Return probabilities, or targets."""
        import torch

        with torch.no_grad():
            self._load(arrays)
            said = self.net(torch.as_tensor(x))
            said = said.softmax(1) if self.task == "classification" else said
        return said.numpy()

    def _load(self, arrays):
        import torch

        own = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(torch.tensor(arrays[name]))
        return own


register(TorchMlpConfig, build=TorchMlp)
