"""Solvers that order a queue for an objective, and exact referees."""
