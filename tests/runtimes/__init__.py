"""Tests of ``fl_app.runtimes``."""
