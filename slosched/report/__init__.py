"""What a run achieved: tables, plots, timelines."""
