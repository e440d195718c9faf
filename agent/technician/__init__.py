"""The technician's tools: read one meter with its evidence, explain frames, list, prove and make profiles.

Nothing here writes to a meter, and nothing here is imported by `shuiwang run`.
"""
