"""Tests of ``fl_app.dashboard``."""
