"""Tests of ``fl_app.stacking``."""
