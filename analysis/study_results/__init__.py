"""What a study says: its table, verdicts, summary and figures."""
