"""Output length predictors."""
