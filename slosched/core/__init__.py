"""The nouns: requests, limits, engines, step times, snapshots, outcomes, metrics; nothing of other rooms."""
