"""The named cases of every op: what tests, benchmarks and ``genimg check`` run.

``genimg/cases/<op>.py`` has the ``CASES`` of the op.
"""
