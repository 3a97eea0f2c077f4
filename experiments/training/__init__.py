"""Trials in training: packs over one frozen base; each trial has an optimizer, a record and an end of its own."""
