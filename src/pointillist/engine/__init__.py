"""Machinery that knows torch and nothing about diffusion."""
