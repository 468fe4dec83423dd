"""The evidence: a grid of runs, what nobody can beat, statistics, and a static site to read them on."""
