"""Tests of ``fl_app.config``."""
