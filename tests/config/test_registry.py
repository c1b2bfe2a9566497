"""Options: one class each, known without the libraries that build them, open to anybody's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

import fl_app.data.catalogue
import fl_app.data.partitioners
import fl_app.federation.privacy
import fl_app.models.registry
import fl_app.strategies
import fl_app.tracking.mlflow.tracker  # noqa: F401
from fl_app.config import registry
from fl_app.config.dataset_options import DatasetConfig
from fl_app.config.options import ModelConfig, PartitionerConfig
from fl_app.config.registry import GROUPS, builder_of, opt, register
from fl_app.config.serialization import from_dict
from fl_app.errors import ConfigError

_ALONE = """
import sys
for name in ("flwr", "sklearn", "mlflow", "ray", "streamlit"):
    sys.modules[name] = None
from fl_app.config import GROUPS, compose_config
count = 0
for group, options in GROUPS.items():
    for option, kind in options.items():
        own = {
            "tabular": ["dataset.target=y", "dataset.path=x"],
            "two_lines": ["num_clients=2"],
            "natural": ["dataset=penguins", "num_clients=3"],
            "linear": ["dataset=diabetes"],
        }
        composed = compose_config([f"{group}={option}", *own.get(option, ())])
        assert option == "auto" or type(getattr(composed, group)) is kind, option
        count += 1
print(count)
"""


def test_every_option_is_known_and_checked_without_what_builds_it() -> None:
    """No Flower, scikit-learn or MLflow is needed to say that a config is right or wrong."""
    done = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "runtime"])
def test_every_option_has_something_that_builds_it(group: str) -> None:
    """But for a model that stands for another, and a file of one's own, which has a path."""
    for name, kind in GROUPS[group].items():
        if name in ("auto", "tabular"):
            with pytest.raises(LookupError, match=f"nothing builds {group}={name}"):
                builder_of(kind())
        else:
            assert callable(builder_of(kind()))


@pytest.fixture
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    for group, options in dict(registry._OPTIONS).items():
        monkeypatch.setitem(registry._OPTIONS, group, dict(options))


@pytest.mark.usefixtures("_own")
def test_an_option_of_ones_own_is_as_good_as_a_built_in_one() -> None:
    """Its fields are checked, its facts are heeded, and it stands in lists of what there is."""

    @register
    @dataclass(frozen=True)
    class Hilly(ModelConfig):
        """A model of one's own."""

        tasks: ClassVar[tuple[str, ...]] = ("regression",)

        name: str = "hilly"
        hills: int = opt(2, "Hills.", ge=1)

    class Coast(DatasetConfig):
        """Is not what it should be: no dataclass."""

        name = "coast"

    made = from_dict({"dataset": {"name": "diabetes"}, "model": {"name": "hilly", "hills": 3}})
    assert made.model == Hilly(hills=3)
    with pytest.raises(ConfigError, match=r"model\.hills=0: expected an integer >= 1"):
        from_dict({"dataset": {"name": "diabetes"}, "model": {"name": "hilly", "hills": 0}})
    with pytest.raises(ConfigError, match="is a classification task; allowed are auto, softmax"):
        from_dict({"model": {"name": "hilly"}})
    with pytest.raises(LookupError, match="nothing builds model=hilly"):
        builder_of(made.model)
    register(Hilly, build=lambda *given: given)
    assert builder_of(made.model)(made.model, 1, 1, "regression")[0] is made.model
    with pytest.raises(TypeError, match="is no frozen dataclass"):
        register(Coast)


@pytest.mark.usefixtures("_own")
def test_two_options_of_one_name_are_refused() -> None:
    """Whoever comes second is told of the first."""

    @dataclass(frozen=True)
    class Iid(PartitionerConfig):
        """Takes a name that is taken."""

        name: str = "iid"

    with pytest.raises(ValueError, match=r"partitioner=iid is fl_app\.config\.options\.IidConfig"):
        register(Iid)
