"""Studies: many trials over one frozen base, tuned alike, compared honestly."""
