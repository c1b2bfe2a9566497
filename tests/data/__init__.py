"""Tests of ``fl_app.data``."""
