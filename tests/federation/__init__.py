"""Tests of ``fl_app.federation``."""
