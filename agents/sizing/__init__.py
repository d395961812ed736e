"""How large a deployment must be for a load, from measured costs."""
