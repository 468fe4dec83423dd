"""The nouns: requests, limits, engines and their step times, snapshots, outcomes, metrics; nothing of the other rooms."""
