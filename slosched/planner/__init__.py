"""What serves our policy: the model of continuous batching, its search, pacing, plans."""
