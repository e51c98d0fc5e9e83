"""Tests of engine.evaluate."""
