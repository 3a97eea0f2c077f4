"""AdaLoRA in several files; `adalora.py` has the formula, the schedule and the departures from the paper."""
