"""The one error of ours."""


class UserError(Exception):
    """Something the user can mend: one line saying what, where (file, row, key), what to do; exit code 2."""
