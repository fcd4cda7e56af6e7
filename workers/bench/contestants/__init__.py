"""Programs that do the same work in different ways, each run as a process of its own.

Each reads a topic from its beginning, checks 16 bytes of every record, writes one score for it, and
commits. When it has committed all, it prints how long that took.
"""
