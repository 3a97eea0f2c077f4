"""Figures of spectra, studies and benchmarks: one file each, drawn from a tidy table."""
