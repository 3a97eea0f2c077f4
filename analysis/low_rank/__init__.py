"""The low-rank test: the runs of a study, what is left of their updates at low rank, and what follows."""
