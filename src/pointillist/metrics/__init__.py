"""Judging: known answers first."""
