"""What every database becomes: clips."""


class DataError(Exception):
    """Data on disk is not as it must be: one line saying what, where (file, row) and what to do."""
