"""Coding files: the tables in which a database says what it shows.

Copies of the same file differ: preamble rows above the header, blank columns, another sheet, another
name, `46`, `46.0` or `'46'` for the same number. So the header is the row whose first filled cell is
`Subject`, columns are addressed by name and never by position, and every value passes through one of
the readers below, which know file, row and column when something is wrong.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from mefar.errors import UserError

_BLANK = {"", "/", "\\", "-", "--", "nan", "none", "null", "n/a", "na", "#n/a"}


@dataclass(frozen=True)
class Row:
    """One row of a coding file, by column name.

    Attributes:
        file: the coding file.
        number: row number as a spreadsheet program shows it, from 1.
        cells: normalised column name -> cell.
    """

    file: Path
    number: int
    cells: Mapping[str, object]

    def text(self, column: str) -> str:
        """A cell as text without surrounding space; "" where blank or where the column is absent."""
        value = self.cells.get(_normal(column))
        if value is None or value != value:
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = " ".join(str(value).split())
        return "" if text.casefold() in _BLANK else text

    def raw(self, column: str) -> object:
        """A cell as it is in the file."""
        return self.cells.get(_normal(column))

    def frame(self, column: str) -> int | None:
        """A frame number, or None where the cell is blank, `/` or NaN.

        Raises:
            UserError: the cell holds something else.
        """
        text = self.text(column)
        if not text:
            return None
        if not re.fullmatch(r"\d{1,12}(\.0*)?", text):
            raise self.error(column, f"{text!r} is not a frame number")
        return int(text.split(".")[0])

    def rate(self, column: str) -> float | None:
        """Frames per second, or None where the cell is blank or the column is absent.

        Raises:
            UserError: the cell holds something else than a number in [1, 10000].
        """
        text = self.text(column)
        if not text:
            return None
        if not re.fullmatch(r"\d{1,5}(\.\d*)?", text) or not 1 <= float(text) <= 10_000:
            raise self.error(column, f"{text!r} is no number of frames per second")
        return float(text)

    def error(self, column: str, complaint: str) -> UserError:
        """The one line about a cell: file, row, column, complaint, what to do."""
        return UserError(f"{self.file}, row {self.number}, column {column!r}: {complaint}; correct the cell")


def read_table(file: Path, needed: Sequence[str], sheet: str | None = None) -> list[Row]:
    """Read an .xlsx or .csv coding file.

    Args:
        file: the coding file.
        needed: columns that must be there; case, spaces and underscores do not matter.
        sheet: the sheet to take if the workbook has it; else the first sheet with a header.

    Returns:
        The rows below the header that have a subject, in file order.

    Raises:
        UserError: the file cannot be read, has no header, lacks a column, a row is half filled, or two
            columns of a needed name differ.
    """
    for cells in _sheets(file, sheet):
        start = next((i for i, row in enumerate(cells) if _is_header(row)), None)
        if start is None:
            continue
        names = [_normal(cell) for cell in cells[start]]
        found = [text for cell in cells[start] if cell is not None and (text := " ".join(str(cell).split()))]
        for column in needed:
            if _normal(column) not in names:
                raise UserError(
                    f"{file}, row {start + 1}: no column {column!r}; columns found: {', '.join(found)}; "
                    "use the coding file as the database's owners publish it"
                )
        return list(_rows(file, names, cells, start + 1, needed))
    raise UserError(
        f"{file}: no header, that is no row whose first cell is 'Subject'; "
        "use the coding file as the database's owners publish it"
    )


def _rows(
    file: Path, names: list[str], cells: list[list[object]], start: int, needed: Sequence[str]
) -> Iterable[Row]:
    wanted = {_normal(column) for column in needed}
    for number, values in enumerate(cells[start:], start + 1):
        by_name: dict[str, object] = {}
        row = Row(file, number, by_name)
        for name, value in zip(names, values, strict=False):
            if not name:
                continue
            before, first = row.text(name), by_name.get(name)
            by_name[name] = value
            if before and row.text(name) not in ("", before) and name in wanted:
                title = next(column for column in needed if _normal(column) == name)
                raise row.error(
                    title, f"another column of that name has {before!r} instead of {row.text(name)!r}"
                )
            if before:
                by_name[name] = first  # of two columns with one name the first that is filled counts
        # Notes and totals below the table have no subject or no file name.
        if row.text("Subject") and row.text("Filename"):
            yield row
        elif any(row.text(name) for name in by_name if "onset" in name):
            raise row.error("Filename" if row.text("Subject") else "Subject", "is blank, but the row is not")


def _sheets(file: Path, prefer: str | None) -> Iterable[list[list[object]]]:
    if file.suffix.casefold() == ".csv":
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                yield [list(row) for row in csv.reader(stream)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}: not a readable CSV file ({error}); save it as UTF-8") from error
        return
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, InvalidFileException, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: not a readable .xlsx file ({reason}); copy it again") from error
    try:
        names = sorted(book.sheetnames, key=lambda name: prefer is None or _normal(name) != _normal(prefer))
        for name in names:
            table = book[name]
            if not hasattr(table, "reset_dimensions"):
                continue  # a chart
            table.reset_dimensions()  # some writers state a size smaller than the table
            yield [list(row) for row in table.iter_rows(values_only=True)]
    except (KeyError, ValueError, zipfile.BadZipFile, SyntaxError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: not a readable .xlsx file ({reason}); copy it again") from error
    finally:
        book.close()


def _is_header(row: Sequence[object]) -> bool:
    first = next((cell for cell in row if cell is not None and str(cell).strip()), None)
    return _normal(first) == "subject"


def _normal(name: object) -> str:
    return "" if name is None else re.sub(r"[\W_]+", "", str(name)).casefold()


def find_coding_file(
    root: Path, names: Sequence[str], title: str, others: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Find the coding file of a database, up to three folders deep.

    Args:
        root: the database's folder.
        names: regular expressions for the file name, the preferred one first (case does not matter).
        title: the file's published name, for the error message.
        others: the same expressions of other databases, to notice a wrong folder.

    Returns:
        The best match. Where no name matches, the only spreadsheet there is: copies get renamed.

    Raises:
        UserError: there is none, or there are several and none has a known name, or it is another
            database's.
    """
    sheets = sorted(
        file
        for depth in ("*", "*/*", "*/*/*")
        for file in root.glob(depth)
        if file.suffix.casefold() in (".xlsx", ".csv") and not file.name.startswith(("~", "."))
    )
    for pattern in names:
        matches = [file for file in sheets if re.search(pattern, file.name, re.IGNORECASE)]
        if matches:
            return min(matches, key=lambda f: (len(f.parts), f.suffix.casefold() != ".xlsx", f.name))
    books = [file for file in sheets if file.suffix.casefold() == ".xlsx"]
    for book in books:
        for database, patterns in (others or {}).items():
            if any(re.search(pattern, book.name, re.IGNORECASE) for pattern in patterns):
                raise UserError(f"{root}: no {title}, but {book.name} of {database}; give another folder")
    if len(books) == 1:
        return books[0]
    if books:
        listed = ", ".join(book.name for book in books[:5])
        raise UserError(f"{root}: which of {listed} is the coding file? name it {title}")
    old = next((file for file in root.glob("*.xls")), None)
    advice = f"save {old.name} as .xlsx" if old else "point to the folder that holds it"
    raise UserError(f"{root}: no coding file ({title}); {advice}")
