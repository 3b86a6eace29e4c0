"""What the tokens did, for a leave-one-subject-out page: pictures, mistakes, attention, codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mefar.loso.results import FinishedRun as Run
from mefar.loso.results import title, worst_mistakes
from mefar.report import figures
from mefar.report.figures import Picture
from mefar.report.page import LIGHTER_AND_DARKER, note, section, table

PICTURE_TITLES = ("onset", "apex", "reconstruction", "change", "rebuilt change")
_MAPS = (
    f"The two maps show what became {LIGHTER_AND_DARKER} since the onset, amplified alike by the factor "
    "beside them: in the recording, and in what the tokens brought back of it."
)
_EVEN = 1.1
"""Weights within this factor of the uniform share are as good as uniform."""


def pictures(run: Run) -> str:
    """One clip per database and what its tokens bring back of it."""
    rows = []
    for database in run.databases:
        found = figures.row_of(run.pictures, database)
        if found is not None:
            images = picture_cells(found[0], PICTURE_TITLES, 150)
            name = escape(title(database))
            rows.append(f"<tr><th>{name}<small>changes × {found[1]:.0f}</small></th>{images}</tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{part}</th>" for part in PICTURE_TITLES)
    return section(
        "What the tokens say",
        table(f"<tr><th></th>{head}</tr>", rows, "pictures"),
        note(
            "One clip per database, whose pixels move as much as the median of its database; "
            "neither the best nor the worst. Reconstruction: the onset, moved by the tokens alone. " + _MAPS
        ),
    )


def mistakes(run: Run) -> str:
    """The clips whose wrong class got the highest probability; not of shuffled labels, which tell nothing."""
    wrong = [] if run.shuffled or run.predictions is None else worst_mistakes(run.predictions)
    if not wrong:
        return ""
    shown = {str(clip): row for row, clip in enumerate(run.pictures.get("mistakes_clips", ()))}
    drawn, rows = False, []
    for mistake in wrong:
        database, subject, clip = mistake.clip.split("/", 2)
        images, gain = f'<td colspan="{len(PICTURE_TITLES)}"></td>', ""
        if mistake.clip in shown:
            parts = [run.pictures[f"mistakes_{part}"][shown[mistake.clip]] for part in PICTURE_TITLES[:3]]
            row, factor = figures.with_changes(*parts)
            images, gain, drawn = picture_cells(row, PICTURE_TITLES, 96), f" × {factor:.0f}", True
        rows.append(
            f"<tr><th>{escape(clip)}<small>{escape(title(database))}, subject {escape(subject)}</small></th>"
            f"<td>{escape(mistake.annotated)}</td><td>{escape(mistake.predicted)}</td>"
            f"<td>{mistake.probability:.2f}</td>{images if shown else ''}"
            f"{f'<td class=n>{gain}</td>' if shown else ''}</tr>"
        )
    head = "".join(f"<th>{part}</th>" for part in (*PICTURE_TITLES, "")) if drawn else ""
    seeds = f" The probability is the mean over {len(run.seeds)} seeds." if len(run.seeds) > 1 else ""
    return section(
        "Worst mistakes",
        table(
            f"<tr><th></th><th>annotated</th><th>predicted</th><th>p</th>{head}</tr>",
            rows,
            "pictures mistakes",
        ),
        note(
            "The clips whose wrong class got the highest probability p at the last epoch: look here for "
            f"wrong annotations, wrong apexes and faces cut badly.{seeds} {_MAPS if drawn else ''}"
        ),
    )


def attention(run: Run) -> str:
    """Which tokens the heads look at, by annotated class."""
    scopes = [scope for scope in run.scopes if any(run.attention.get(scope, []))]
    if not scopes:
        return ""
    shares = [share * len(row) for scope in scopes for row in run.attention[scope] if row for share in row]
    furthest = max(max(share, 1 / max(share, 1e-6)) for share in shares)
    factor = min(4.0, max(_EVEN, furthest))
    drawn = [
        f"<figure><figcaption>{escape(run.row(scope))}</figcaption>"
        f"{figures.attention_svg(run.attention[scope], run.summary['classes'], factor)}</figure>"
        for scope in scopes
    ]
    even = (
        f"<p>No mean weight is further than {furthest - 1:.1%} from the uniform share: these heads do not "
        "tell classes apart by where they look.</p>"
    )
    labels = "shuffled" if run.shuffled else "annotated"
    return section(
        "Attention over tokens",
        even if furthest < _EVEN else "",
        f'<div class="figures">{"".join(drawn)}</div>',
        note(
            f"The pooling weight of each token, mean over the held-out clips of the {labels} class at the "
            'last epoch. White is the uniform share, <span class="lighter">red</span> more, '
            '<span class="darker">blue</span> less; full colour is '
            f"{factor:.2g} times as much or as little. Point at a cell for its number."
        ),
    )


def codes(run: Run) -> str:
    """How often each code was chosen."""
    if "usage" not in run.pictures:
        return ""
    return code_usage([int(count) for count in run.pictures["usage"]], "these clips")


def code_usage(usage: Sequence[int], where: str) -> str:
    """How often each code was chosen, as a section.

    Args:
        usage: (K,) counts.
        where: on what, words.
    """
    total = sum(usage)
    shares = [count / total for count in usage if count] if total else []
    perplexity = math.exp(-sum(share * math.log(share) for share in shares))
    used = sum(count > 0 for count in usage)
    return section(
        "Codes",
        f"<p><b>{used} of {len(usage)}</b> codes are used on {where}; perplexity <b>{perplexity:.1f}</b> "
        f"of {len(usage)} over {total:,} tokens.</p>",
        f'<div class="wide">{figures.usage_svg(usage)}</div>',
        note("Times each code was chosen; dashed: the uniform share."),
    )


def picture_cells(row: Sequence[Picture], names: Sequence[str], width: int) -> str:
    """Pictures as cells of a table.

    Args:
        row: pictures (H, W, 3) uint8.
        names: as many, what each shows.
        width: on the page, in pixels.
    """
    return "".join(
        f'<td><img src="{figures.png_uri(picture, width)}" width="{width}" alt="{name}"></td>'
        for picture, name in zip(row, names, strict=True)
    )
