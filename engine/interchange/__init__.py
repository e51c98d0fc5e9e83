"""Models in Hugging Face's format, both ways: one declarative map of names and layouts per family."""
