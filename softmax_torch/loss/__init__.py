"""Checks, weights and dtypes of the loss."""
