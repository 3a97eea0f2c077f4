"""Who trains what: an Optuna study in a file or a database, and the workers that claim its trials."""
