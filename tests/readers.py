"""The shipped databases as functions: folder -> annotations, or the first thing that stops a load."""

from __future__ import annotations

from functools import partial

from datamodules.databases.casme2 import DATABASE as CASME2
from datamodules.databases.casme3 import DATABASE as CASME3
from datamodules.databases.catalogue import shipped
from datamodules.databases.dfme import DATABASE as DFME
from datamodules.databases.mmew import DATABASE as MMEW
from datamodules.databases.reading import read
from datamodules.databases.samm import DATABASE as SAMM
from datamodules.databases.smic import DATABASE as SMIC

OTHERS = {name: one.file_patterns for name, one in shipped().items() if one.coding_file}


def _reader(database):  # type: ignore[no-untyped-def]
    others = {name: patterns for name, patterns in OTHERS.items() if name != database.name}
    return partial(read, database, others=others)


casme2, casme3, samm = _reader(CASME2), _reader(CASME3), _reader(SAMM)
smic, dfme, mmew = _reader(SMIC), _reader(DFME), _reader(MMEW)
