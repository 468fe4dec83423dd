"""Static batches, the setting of Huang et al. 2025: kernels, exact referees, instances, benchmark."""
