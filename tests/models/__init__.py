"""Tests of ``fl_app.models``."""
