"""Cluster metadata, brokers and the home directory: what exists, and who is here."""
