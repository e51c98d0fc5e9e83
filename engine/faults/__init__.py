"""Faults made on purpose, to rehearse a bad day: what a plan may say, what does the harm, and poisoned data."""
