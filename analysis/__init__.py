"""What is concluded from the runs on disk: spectra of the updates, verdicts of studies, figures."""
