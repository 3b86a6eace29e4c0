"""The one error of ours, and what others say as one line."""


class UserError(Exception):
    """Something the user can mend: one line saying what, where (file, row, key), what to do; exit code 2."""


def one_line(error: object, most: int = 200) -> str:
    """What an error of somebody else's says, as one line of at most so many letters."""
    return " ".join(str(error).split())[:most]
