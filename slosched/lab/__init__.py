"""Studies of policies: runs, bounds, statistics, capacity, and why a request missed its limits."""
