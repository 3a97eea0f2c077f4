"""The base models that need no download."""
