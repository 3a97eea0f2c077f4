"""AdaLoRA, a method of several files; `adalora.py` has the formula, the schedule and the departures."""
