"""The split before training: the rows that the clients will have."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import yaml

from fl_app.config.compose import compose_config
from fl_app.config.serialization import to_dict
from fl_app.dashboard import uploads
from fl_app.dashboard.arguments import jobs
from fl_app.dashboard.choices import Choices
from fl_app.dashboard.split import MAX_POINTS, config_of_text, split_of, split_of_text
from fl_app.data.client_data import partition_of, whole_table
from fl_app.errors import InputError


def test_counts_are_those_of_the_clients_rows():
    """Labels and clients in their order; rows and columns add up to n_k and to the classes."""
    words = ["dataset=penguins", "partitioner=natural", "num_clients=3"]
    found, config = split_of(words), compose_config(words)
    assert found.labels == ("Adelie", "Chinstrap", "Gentoo")
    for k in range(3):
        rows = partition_of(config, k)
        labels = rows.train.target.tolist()
        assert [row[k] for row in found.counts] == [labels.count(name) for name in found.labels]
        assert (found.sizes[k], found.validation[k]) == (len(labels), len(rows.validation))
    assert sum(found.sizes) + sum(found.validation) + found.test == len(whole_table(config))
    assert found.features == found.points == ()


def test_numbers_are_counted_in_bins_that_all_clients_share():
    words = ["dataset=diabetes", "num_clients=4"]
    found, config = split_of(words), compose_config(words)
    assert (found.task, found.target) == ("regression", "progression")
    assert len(found.edges) == len(found.labels) + 1 == len(found.counts) + 1
    for k in range(4):
        target = partition_of(config, k).train.target[:, 0]
        expected = np.histogram(target, found.edges)[0].tolist()
        assert [row[k] for row in found.counts] == expected


def test_sentences_say_what_the_deal_comes_to():
    words = ["partitioner=dirichlet", "partitioner.alpha=0.1"]
    assert split_of(words).sentences == (
        "1294 rows train on 10 clients, 144 validate, 359 test on the server",
        "n_k, a client's rows to train on: 62 to 295",
        "a client has 3 to 7 of the 10 classes",
    )
    (alone, none) = split_of(["num_clients=1", "dataset.test_fraction=0"]).sentences
    assert alone == "1617 rows train on 1 client, 180 validate, 0 test on the server"
    assert none == "the server has no test rows: look at the clients' own numbers"


def test_two_features_or_one_give_points_in_their_unit():
    """The lesson: rows of y = 2x + 1 and of y = x + 1 at x = -1 and x = +1."""
    found = split_of(["experiment=two_lines"])
    assert found.features == ("x",)
    assert [client.x for client in found.points] == [((-1.0,), (1.0,))] * 2
    assert [client.y for client in found.points] == [(-1.0, 3.0), (0.0, 2.0)]
    assert hash(found) == hash(split_of(["experiment=two_lines"]))


def test_points_are_few_and_have_no_gaps():
    """Every so many-th row where there are many, and none with a missing cell."""
    rows = b"".join(b"%d,%d,%s\n" % (i, i % 7, b"pq"[i % 2 :][:1]) for i in range(9000))
    name = uploads.save(None, b"a,b,y\n" + rows + b",1,p\n", "own.csv").id
    found = split_of(jobs(Choices(upload=name, clients=3))[0])
    assert found.features == ("a", "b")
    assert 0 < sum(len(client.x) for client in found.points) <= MAX_POINTS + 3
    assert all(np.isfinite(client.x).all() for client in found.points)
    assert {label for client in found.points for label in client.y} == {"p", "q"}


def test_pooled_rows_are_shown_as_the_clients_would_have_them():
    """Beside the strategies that do not pool, on the same deal."""
    apart, pooled = split_of([]), split_of(["strategy=pooled"])
    assert replace(pooled, pooled=False) == apart
    assert "strategy=pooled trains on the rows of all clients in one place" in pooled.sentences


def test_what_cannot_be_dealt_is_one_sentence():
    with pytest.raises(InputError, match="num_clients=500: at most one client a training row"):
        split_of(["dataset=iris", "num_clients=500"])


def test_a_past_run_is_dealt_again_if_its_rows_are_here():
    """Not a deployment's own files, not a file that has changed or gone, not another's words."""
    own = uploads.save(None, b"a,y\n" + b"1,0\n2,1\n" * 30, "own.csv")
    for words in ([], jobs(Choices(upload=own.id, clients=3))[0]):
        config = compose_config(words)
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
        digest = whole_table(config).sha256
        assert split_of_text(text, digest) == split_of(words)
        assert config_of_text(text, digest) == config_of_text(text) == config
        assert config_of_text(text, "0" * 64) is split_of_text(text, "0" * 64) is None
    own.path.unlink()
    assert config_of_text(text) is split_of_text(text) is None
    at_theirs = ["runtime=deployment", "runtime.superlink=lab"]
    wild = compose_config(["dataset=tabular", "dataset.target=y", *at_theirs])
    for odd in (yaml.safe_dump(to_dict(wild)), "", "- 1", "a: [", "colour: red", "seed: -1"):
        assert config_of_text(odd) is split_of_text(odd) is None


def test_a_thousand_clients_take_no_time():
    """Measured: 0.4 s on a busy machine."""
    begun = time.monotonic()
    found = split_of(["num_clients=1000"])
    assert len(found.sizes) == len(found.counts[0]) == 1000
    assert time.monotonic() - begun < 10
