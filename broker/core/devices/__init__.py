"""Devices of the cluster: who they are, how they join, what they offer, how they leave."""
