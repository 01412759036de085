"""Chains of layers: from an activation of a network back to what the network was shown."""
