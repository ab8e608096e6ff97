"""The ablation's table as markdown and as one self-contained page; pure functions of table.json.

What it is: layout, in the style of the evaluation report (`stages/report`). What it is not: a computation of any number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from zscmr_ray.stages.ablate.plan import TRAINING_FREE
from zscmr_ray.stages.report.charts import NUM_COLOURS, axis_top
from zscmr_ray.stages.report.tables import number, span
from zscmr_ray.storage import Store

MARKDOWN, PAGE = "table.md", "ablation.html"
WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 860, 230, 16, 8, 24, 34

Table = Mapping[str, Any]


def write_page(store: Store, table: Table) -> str:
    """Write table.md and ablation.html; returns the markdown."""
    text = markdown(table)
    store.write_bytes(MARKDOWN, text.encode())
    store.write_bytes(PAGE, render(table).encode())
    return text


def render(table: Table) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(__name__, ""), jinja2.PackageLoader("zscmr_ray.stages.report", "")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "span": span, "signed": signed, "p": p_text}
    return environment.get_template("ablation.html").render(
        table=table,
        corpora=[corpus | {"chart": chart(corpus), "titles": titles(corpus)} for corpus in table["corpora"]],
    )


def markdown(table: Table) -> str:
    """Return one table per corpus: mean over splits, spread, each split, gain over the reference and p."""
    blocks = [
        _markdown_of(corpus, table["plan"]["reference"]) for corpus in table["corpora"] if corpus["rows"]
    ]
    state = f"{table['num_done']} of {table['num_trials']} trials"
    failed = f", {len(table['failures'])} failed" if table["failures"] else ""
    cost = f"{table['cpu_s'] / 60:.1f} CPU-minutes"
    looks = f"unseen classes were evaluated {table['unseen_evaluations']} times"
    return "\n\n".join([*blocks, f"{state}{failed}; {cost}; {looks}."]) + "\n"


def titles(corpus: Mapping[str, Any]) -> dict[int, str]:
    """Return each row's title: recipes by their name, their other scores and what needs no training by theirs."""
    return {place: title(row) for place, row in enumerate(corpus["rows"])}


def title(row: Mapping[str, Any]) -> str:
    """Return a row's title.

    >>> title({"recipe": "fgan", "key": "labels", "name": "FGAN, label distributions", "is_main": False})
    'fgan: label distributions'
    """
    if row["recipe"] == TRAINING_FREE:
        return str(row["name"])
    return str(row["recipe"]) if row["is_main"] else f"{row['recipe']}: {row['name'].split(', ', 1)[-1]}"


def signed(value: float | None) -> str:
    """Return a gain with its sign.

    >>> signed(0.0312), signed(-0.2), signed(None)
    ('+.031', '-.200', '–')
    """
    if value is None:
        return "–"
    return ("-" if value < 0 else "+") + number(abs(value))


def p_text(value: float | None) -> str:
    """Return a p-value in three digits, or as below the smallest that is shown.

    >>> p_text(0.0432), p_text(0.0001)
    ('.043', '< .001')
    """
    return number(value) if value is None or value >= 0.001 else "< .001"


def chart(corpus: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the geometry of a row per method: a ring per split, the mean and its interval, chance as a dashed line."""
    rows = corpus["rows"]
    if not rows:
        return None
    top = axis_top(max(_highest(row) for row in rows))
    splits = list(corpus["splits"])

    def x(value: float) -> float:
        return round(LEFT + value / top * (WIDTH - LEFT - RIGHT), 1)

    height = TOP + ROW * len(rows) + BOTTOM
    return {
        "size": {"width": WIDTH, "height": height},
        "bottom": height - BOTTOM,
        "left": LEFT,
        "chance_x": x(rows[0]["mean"]["chance"]),
        "ticks": [{"x": x(top * step / 4), "text": f"{top * step / 4:.3g}"} for step in range(5)],
        "splits": [{"name": name, "colour": place % NUM_COLOURS} for place, name in enumerate(splits)],
        "rows": [
            {
                "title": title(row),
                "is_main": row["is_main"],
                "y": TOP + ROW * (place + 0.5),
                "mean_x": x(row["mean"]["map"]),
                "from_x": x(row["mean"]["interval"][0] or 0.0),
                "to_x": x(row["mean"]["interval"][1] or 0.0),
                "told": f"{number(row['mean']['map'])} ({span(row['mean']['interval'])})",
                "rings": [
                    {"x": x(cell["map"]), "colour": splits.index(name) % NUM_COLOURS}
                    for name, cell in row["cells"].items()
                ],
            }
            for place, row in enumerate(rows)
        ],
    }


def _highest(row: Mapping[str, Any]) -> float:
    ends = [row["mean"]["interval"][1], *(cell["map"] for cell in row["cells"].values())]
    return max(value for value in ends if value is not None)


def _markdown_of(corpus: Mapping[str, Any], reference: str) -> str:
    splits = list(corpus["splits"])
    head = ["mean over splits", "std", "x chance", *splits, f"class gain over {reference}", "p"]
    lines = [f"| {corpus['name']}, U\\|U mAP@all | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for row in corpus["rows"]:
        mean, gain = row["mean"], row["gain"]
        few = "" if mean["num_splits"] == len(splits) else f", {mean['num_splits']} of {len(splits)} splits"
        cells = [
            f"{number(mean['map'])} ({span(mean['interval'])}{few})",
            number(mean["std"]),
            number(mean["times_chance"], 1),
            *(_cell(row["cells"].get(split)) for split in splits),
            "–" if gain is None else f"{signed(gain['mean_gain'])} ({span_signed(gain['interval'])})",
            "–" if gain is None else p_text(gain["p"]),
        ]
        lines.append(f"| {title(row)} | {' | '.join(cells)} |")
    chances = [_chance(corpus, split) for split in splits]
    known = [value for value in chances if value is not None]
    mean_chance = sum(known) / len(known) if known else None
    shown = " | ".join(number(value) for value in chances)
    lines.append(f"| chance | {number(mean_chance)} | – | 1.0 | {shown} | – | – |")
    return "\n".join(lines)


def span_signed(interval: list[float | None]) -> str:
    """Return an interval of gains.

    >>> span_signed([-0.01, 0.2])
    '-.010 to +.200'
    """
    return f"{signed(interval[0])} to {signed(interval[1])}"


def _cell(cell: Mapping[str, Any] | None) -> str:
    return "–" if cell is None else f"{number(cell['map'])} ({span(cell['interval'])})"


def _chance(corpus: Mapping[str, Any], split: str) -> float | None:
    return next((row["cells"][split]["chance"] for row in corpus["rows"] if split in row["cells"]), None)
