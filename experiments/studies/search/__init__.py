"""Ranks per layer under one budget: what may be tried, what a sampler suggests next, and what mattered."""
