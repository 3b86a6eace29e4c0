"""Coding files: the tables in which a database says what it shows.

Copies of the same file differ: preamble rows above the header, blank columns, another sheet, another
name, `46`, `46.0` or `'46'` for the same number. So the header is found by what stands in it, columns are
addressed by name and never by position, and every value passes through one of the readers below, which
know file, row and column when something is wrong.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import openpyxl
import xlrd

from datamodules.databases.folders import TABLES
from mefar.errors import UserError

_BLANK = {"", "/", "\\", "-", "--", "nan", "none", "null", "n/a", "na", "#n/a"}
# The largest published coding file has 1,856 rows; what is beyond these is no coding file.
_MOST_ROWS = 100_000
_MOST_COLUMNS = 500
_MOST_BYTES = 50_000_000  # of an unpacked workbook


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
        """A cell as text without surrounding space; "" where blank or where the column is absent.

        Whole numbers have no decimals: a csv says `355.0` where a workbook holds 355.
        """
        value = self.cells.get(normal(column))
        if value is None or value != value:
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = " ".join(str(value).split())
        text = re.sub(r"^(\d+)\.0+$", r"\1", text)
        return "" if text.casefold() in _BLANK else text

    def raw(self, column: str) -> object:
        """A cell as it is in the file."""
        return self.cells.get(normal(column))

    def has(self, column: str) -> bool:
        """Whether the table has the column."""
        return normal(column) in self.cells

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


def read_table(
    file: Path, needed: Sequence[str], sheet: str | None = None, titles: Sequence[str] | None = None
) -> list[Row]:
    """Read an .xlsx, .xls or .csv coding file.

    Args:
        file: the coding file.
        needed: columns that must be there, beginning with subject, file name and onset; case, spaces and
            underscores do not matter.
        sheet: the sheet to take if the workbook has it; else the first sheet with a header.
        titles: names of the columns from left to right, for a table that has no header.

    Returns:
        The rows below the header that have a subject and a file name, in file order.

    Raises:
        UserError: the file cannot be read, has no header, lacks a column, a row is half filled, or two
            columns of a needed name differ.
    """
    lacking: UserError | None = None
    for cells in _tables(file, sheet):
        start = next((i for i, row in enumerate(cells) if _is_header(row, needed)), None)
        if start is None and titles is not None and any(cells):
            return list(_rows(file, [normal(title) for title in titles], cells, 0, needed))
        if start is None:
            continue
        names = [normal(cell) for cell in cells[start]]
        missing = next((column for column in needed if normal(column) not in names), None)
        if missing is None:
            return list(_rows(file, names, cells, start + 1, needed))
        found = [text for cell in cells[start] if cell is not None and (text := " ".join(str(cell).split()))]
        lacking = lacking or UserError(
            f"{file}, row {start + 1}: no column {missing!r}; columns found: {', '.join(found)}; "
            "use the coding file as the database's owners publish it"
        )
    raise lacking or UserError(
        f"{file}: no header, that is no row whose first cell is {needed[0]!r}; "
        "use the coding file as the database's owners publish it"
    )


def _rows(
    file: Path, names: list[str], cells: list[list[object]], start: int, needed: Sequence[str]
) -> Iterable[Row]:
    wanted = {normal(column) for column in needed}
    subject, name_of_file, onset = needed[:3]
    for number, values in enumerate(cells[start:], start + 1):
        by_name: dict[str, object] = dict.fromkeys(filter(None, names))
        row = Row(file, number, by_name)
        for name, value in zip(names, values, strict=False):  # rows may be shorter than their titles
            if not name:
                continue
            before, first = row.text(name), by_name.get(name)
            by_name[name] = value
            if before and row.text(name) not in ("", before) and name in wanted:
                title = next(column for column in needed if normal(column) == name)
                raise row.error(
                    title, f"another column of that name has {before!r} instead of {row.text(name)!r}"
                )
            if before:
                by_name[name] = first  # of two columns with one name the first that is filled counts
        # Notes and totals below the table have no subject or no file name.
        if row.text(subject) and row.text(name_of_file):
            yield row
        elif row.text(onset):
            raise row.error(name_of_file if row.text(subject) else subject, "is blank, but the row is not")


def _is_header(row: Sequence[object], needed: Sequence[str]) -> bool:
    filled = [normal(cell) for cell in row if cell is not None and str(cell).strip()]
    return bool(filled) and (filled[0] == normal(needed[0]) or {normal(c) for c in needed} <= set(filled))


def normal(name: object) -> str:
    """A column's name as it is compared: letters and digits, lower case."""
    return "" if name is None else re.sub(r"[\W_]+", "", str(name)).casefold()


def _tables(file: Path, prefer: str | None) -> Iterator[list[list[object]]]:
    """The sheets of a workbook, the preferred one first; a csv file by each delimiter.

    Raises:
        UserError: the file cannot be read, whatever its reader fell over.
    """
    kind = file.suffix.casefold()
    try:
        empty = file.stat().st_size == 0
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); copy it again") from error
    if empty:
        raise UserError(f"{file}: not a readable {kind} file (it is empty); copy it again")
    tables = {".csv": _csv, ".xls": _xls}.get(kind, _xlsx)(file, prefer)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a spreadsheet can do and a table has no use for
                table = next(tables, None)
        except UserError:
            raise
        except Exception as error:
            # Damaged files make readers fail in every way there is; none of them is a fault of ours.
            reason = " ".join(str(error).split()) or type(error).__name__
            advice = "save it as UTF-8" if kind == ".csv" else "copy it again"
            raise UserError(f"{file}: not a readable {kind} file ({reason}); {advice}") from error
        if table is None:
            return
        yield table


def _csv(file: Path, prefer: str | None) -> Iterator[list[list[object]]]:
    del prefer
    text = file.read_text(encoding="utf-8-sig")
    for delimiter in ",;\t":
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        yield _bounded(file, rows)


def _xlsx(file: Path, prefer: str | None) -> Iterator[list[list[object]]]:
    with zipfile.ZipFile(file) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist() if entry.filename.endswith(".xml"))
    if unpacked > _MOST_BYTES:
        raise UserError(f"{file}: {unpacked / 1e6:.0f} MB when unpacked, which is no coding file")
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    try:
        for name in _ordered(book.sheetnames, prefer):
            table = book[name]
            if not hasattr(table, "reset_dimensions"):
                continue  # a chart
            table.reset_dimensions()  # some writers state a size smaller than the table
            yield _bounded(file, table.iter_rows(values_only=True))
    finally:
        book.close()


def _xls(file: Path, prefer: str | None) -> Iterator[list[list[object]]]:
    with file.open("rb") as stream:
        content = stream.read(_MOST_BYTES)
    book = xlrd.open_workbook(file_contents=content, logfile=io.StringIO())
    for name in _ordered(book.sheet_names(), prefer):
        table = book.sheet_by_name(name)
        rows = ([_xls_value(cell, book.datemode) for cell in table.row(i)] for i in range(table.nrows))
        yield _bounded(file, rows)


def _xls_value(cell: Any, datemode: int) -> object:
    """What a cell shows: dates and errors are kept as numbers there, and would pass for frame numbers."""
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(cell.value, "#N/A")
    if cell.ctype == xlrd.XL_CELL_DATE:
        return xlrd.xldate_as_datetime(cell.value, datemode)
    return cell.value


def _ordered(names: Sequence[str], prefer: str | None) -> list[str]:
    return sorted(names, key=lambda name: prefer is None or normal(name) != normal(prefer))


def _bounded(file: Path, rows: Iterable[Iterable[object]]) -> list[list[object]]:
    table = [list(row)[:_MOST_COLUMNS] for row in islice(rows, _MOST_ROWS + 1)]
    if len(table) > _MOST_ROWS:
        raise UserError(f"{file}: more than {_MOST_ROWS} rows, which is no coding file")
    return table


def find_coding_file(
    root: Path,
    names: Sequence[str],
    title: str,
    others: Mapping[str, Sequence[str]] | None = None,
    beside: Path | None = None,
) -> Path:
    """Find the coding file of a database, up to three folders deep.

    Args:
        root: the database's folder.
        names: regular expressions for the file name, the preferred one first (case does not matter).
        title: the file's published name, for the error message.
        others: the same expressions of other databases, to notice a wrong folder.
        beside: the folder that the user named, where it is not `root`: coding files are often kept in a
            folder of their own beside the frames. There it is known by name only.

    Returns:
        The best match. Where no name matches, the only spreadsheet there is: copies get renamed.

    Raises:
        UserError: there is none, or there are several and none has a known name, or it is another
            database's.
    """
    if (found := known_coding_file(root, names, beside)) is not None:
        return found
    books = [file for file in _sheets_below(root) if file.suffix.casefold() != ".csv"]
    for book in books:
        for database, patterns in (others or {}).items():
            if any(re.search(pattern, book.name, re.IGNORECASE) for pattern in patterns):
                raise UserError(f"{root}: no {title}, but {book.name} of {database}; give another folder")
    if len(books) == 1:
        return books[0]
    if books:
        listed = ", ".join(book.name for book in books[:5])
        raise UserError(f"{root}: which of {listed} is the coding file? name it {title}")
    looked = f"{root}" if beside in (None, root) else f"{root} and {beside}"
    raise UserError(
        f"{looked}: no coding file ({title}); point to the folder that holds coding file and frames"
    )


def known_coding_file(root: Path, names: Sequence[str], beside: Path | None = None) -> Path | None:
    """The coding file by one of its names; None where there is none. Arguments as for `find_coding_file`."""
    found = _best(_sheets_below(root), names)
    if found is None and beside is not None and beside != root:
        found = _best(_sheets_below(beside), names)
    return found


def _sheets_below(root: Path) -> list[Path]:
    return sorted(
        file
        for depth in ("*", "*/*", "*/*/*")
        for file in root.glob(depth)
        if file.suffix.casefold() in TABLES and not file.name.startswith(("~", "."))
    )


def _best(sheets: Sequence[Path], names: Sequence[str]) -> Path | None:
    formats = (".xlsx", ".xls", ".csv")
    for pattern in names:
        matches = [file for file in sheets if re.search(pattern, file.name, re.IGNORECASE)]
        if matches:
            return min(matches, key=lambda f: (len(f.parts), formats.index(f.suffix.casefold()), f.name))
    return None
