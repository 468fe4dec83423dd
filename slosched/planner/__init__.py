"""What serves our policy: rules rolled forward on sampled futures, the event model, plans."""
