"""Tests of ``fl_app.cli``."""
