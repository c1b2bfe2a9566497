"""Tests of ``fl_app.tracking``."""
