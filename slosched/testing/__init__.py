"""What authors of policies and adapters test with: chaos, a virtual clock, small models."""
