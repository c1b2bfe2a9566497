"""Texts and lists are written as Hydra reads them."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from fl_app.config.overrides import bracket, quoted

HYDRA = OverridesParser.create()


@given(st.lists(st.text("aZ_é 1.-/,=[]{}:\"'$", min_size=1) | st.sampled_from(["null", "True"])))
def test_names_are_suggested_as_hydra_reads_them(names):
    """An override that a message suggests gives the very names that the file has."""
    override = HYDRA.parse_override(f"dataset.categorical={bracket(names)}")
    assert [getattr(value, "text", value) for value in override.value()] == names
    for name in names:
        value = HYDRA.parse_override(f"dataset.target={quoted(name)}").value()
        assert getattr(value, "text", value) == name
