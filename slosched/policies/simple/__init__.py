"""Policies that sort the queue by one number."""
