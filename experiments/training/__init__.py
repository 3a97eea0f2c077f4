"""Trials in training: packs over one frozen base; each trial has an optimizer, a run directory and an end of its own."""
