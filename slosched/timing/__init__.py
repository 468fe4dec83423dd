"""How long engine steps take: measured presets, fits, step logs, drift, and estimates of service."""
