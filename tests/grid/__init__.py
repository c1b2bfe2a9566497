"""Tests of ``fl_app.grid``."""
