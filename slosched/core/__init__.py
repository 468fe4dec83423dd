"""The nouns: requests, limits, engines, snapshots, outcomes; they import nothing of the other rooms."""
