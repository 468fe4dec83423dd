"""Routers of published systems, each after its paper or code."""
