"""Which trials a study wants next, given its file and the results so far."""
