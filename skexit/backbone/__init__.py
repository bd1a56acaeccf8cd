"""The user's torch network: its modules, inputs, exits and costs, and how to record and cut it.

Extraction, the live network and training share it; it knows neither caches nor policies.
"""
