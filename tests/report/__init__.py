"""Tests of ``fl_app.report``."""
