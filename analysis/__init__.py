"""What is concluded from the runs on disk: spectra of the updates, tests of hypotheses, figures."""
