"""Policies of other projects and papers."""
