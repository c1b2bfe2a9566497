"""The page itself: its layout and its widgets."""

from __future__ import annotations

import streamlit as st

__all__ = ["main"]


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="Federated learning", layout="wide")
    st.write("Not there yet.")
