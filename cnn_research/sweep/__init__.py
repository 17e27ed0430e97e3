"""Sweeps: many runs of one experiment that differ in some fields."""
