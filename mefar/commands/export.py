"""`mefar export RUN OUT`: a finished leave-one-subject-out run as a model to hand on, with its card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mefar import __version__
from mefar.errors import UserError

CARD = """---
license: {licence}
library_name: mefar
tags: [micro-expressions, facial-action, action-tokens]
---

# Facial action tokens: {classes}

{network}, {size} px, {codes} codes, {tokens} tokens; a head for {count} classes{units}.

```python
import mefar

model = mefar.load("this folder, or owner/name on the hub")
tokens = model.tokenize("onset.png", "apex.png")
model.classify(tokens), model.units(tokens), model.describe(tokens)
model.reconstruct("somebody_else.png", tokens, strength=1.5)
```

## What was trained on what

- **Tokenizer**: trained on {pretrained_on}, without labels.
- **Head and read-out of action units**: trained on **all {subjects} subjects** of {protocol} ({clips} clips:
  {databases}), views and epochs as in every fold of the protocol.
- Command: `{command}`{commit}, mefar {version}.

## Scores, and whose they are

**No score below belongs to these weights**, which have seen every subject. They belong to other heads, by the
same recipe, each trained without the subjects that it was tested on: what to expect of people whom this model
has not seen, recorded in the same way.

{scores}
{unit_scores}## Rights

{rights}

## Limits

- Frontal faces, aligned by eyes and mouth, read at {size} px; a face narrower than 48 pixels or turned to the
  side is refused.
- Onset and apex must be given, of one face at rest and in action. What a face shows is not what a person
  feels.
- Trained on the people and cameras named above; others may be read worse, and nobody has measured how much.
- Not to be used to judge people: at work, at borders, in court, or for their health.
"""
SELECTIONS = """\
`last` is the epoch fixed in advance; `oracle` the epoch that is best on the test subject itself, which leaks,
and is here only to compare with published tables.
"""
RENDERED = (
    "Trained on rendered faces alone: no real person, no licensed database. The licence of mefar (MIT)."
)
LICENSED = (
    "{databases}: licensed for research; whether weights trained on them may be handed on is for their "
    "owners to say. Ask them before you publish this folder. The code is under mefar's licence (MIT)."
)


def export(run: Path, out: Path, *, onnx: bool = False) -> None:
    """Write a finished run's tokenizer, head and read-out of action units, trained on all subjects.

    OUT gets model.safetensors, config.json and README.md, the model card. `mefar.load("OUT")` reads it, and
    so does Model.from_pretrained, also after push_to_hub. Nothing is sent anywhere.

    Args:
        run: folder of a leave-one-subject-out run that ended with `--final`; or demo, the model that comes
            with mefar.
        out: folder to make.
        onnx: also write tokenize.onnx, reconstruct.onnx and classify.onnx (`pip install mefar[onnx]`).
    """
    from mefar.commands import model as models
    from mefar.tokenizer.plain import load as load_tokenizer
    from mefar.tokenizer.plain import ships

    if out.exists():
        raise UserError(f"{out}: is there already; give another folder")
    if ships(run):
        made = models.load(run)
    else:
        readers = _readers(run)
        made = models.Model(load_tokenizer(readers.about.trained_on["tokenizer"]["checkpoint"]), readers)
    made.card = card(made)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as place:
        folder = Path(place) / "model"
        made.save_pretrained(folder)
        if onnx:
            from mefar.commands.onnx_files import write

            write(made, folder)
        folder.rename(out)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _readers(run: Path) -> Any:
    from mefar.loso import final
    from mefar.loso.results import read_run
    from mefar.readers import Readers

    summary = read_run(run).summary
    if not (run / final.FILE).is_file():
        command = summary.get("command") or "mefar loso ..."
        raise UserError(
            f"{run}: has no head trained on all subjects, and a fold's would be a worse one; run its command "
            f"again, what is finished is kept: {command} --final"
        )
    return Readers.load(run / final.FILE)


def card(model: Any) -> str:
    """The model card, from what the readers remember of their training."""
    about, tokenizer = model.readers.about, model.tokenizer
    told = about.trained_on
    counts = {name: each for name, each in told.get("counts", {}).items() if name != "all"}
    rendered = _is_rendered(told)
    names = ", ".join(counts) or told.get("data", "")
    subjects = sum(each["subjects"] for each in counts.values()) or told.get("subjects", 0)
    return CARD.format(
        licence="mit" if rendered else "other",
        classes=", ".join(about.classes),
        count=len(about.classes),
        network=type(tokenizer.network).__name__,
        size=tokenizer.image_size,
        codes=tokenizer.num_codes,
        tokens=tokenizer.num_tokens,
        units=f", a read-out of {len(about.units)} action units" if about.units else "",
        pretrained_on=told.get("tokenizer", {}).get("pretrained_on", "rendered faces that talk"),
        subjects=subjects,
        protocol=told["protocol"],
        clips=told["clips"],
        databases=names,
        command=told["command"],
        commit=f", commit {told['commit']}" if told.get("commit") else "",
        version=__version__,
        scores=_scores(told.get("scores", {})),
        unit_scores=_unit_scores(about.unit_f1),
        rights=RENDERED if rendered else LICENSED.format(databases=names),
    )


def _is_rendered(told: Mapping[str, Any]) -> bool:
    """Whether all data were rendered, as `mefar make-demo` marks them."""
    words = str(told.get("command", "")).split()
    data = words[words.index("--data") + 1] if "--data" in words[:-1] else ""
    return "rendered" in str(told.get("data", "")) or (bool(data) and (Path(data) / "demo.json").is_file())


def _scores(scores: Mapping[str, Any]) -> str:
    if not scores:
        return (
            "No classes were scored in this run; experiments/RESULTS.md of mefar has those of such heads.\n"
        )
    lines = ["| left out once, pooled | " + " | ".join(f"{name} UF1 / UAR" for name in scores) + " |"]
    lines.append("|---" * (len(scores) + 1) + "|")
    for place in next(iter(scores.values())):
        cells = [f"{each[place]['uf1']:.4f} / {each[place]['uar']:.4f}" for each in scores.values()]
        lines.append(f"| {place} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", SELECTIONS])


def _unit_scores(found: Mapping[str, float]) -> str:
    if not found:
        return ""
    told = ", ".join(f"{unit} {value:.2f}" for unit, value in found.items())
    return (
        "Action units, F1 of read-outs fitted without a fifth of the subjects and asked about them: "
        f"{told}. Shown and not shown count alike in training, so rare units are named too often.\n\n"
    )
