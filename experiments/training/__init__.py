"""Trials in training: packs over one frozen base; each trial has its own optimizer, run directory and end."""
