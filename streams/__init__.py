"""The runtime under the agents."""
