"""A report as one HTML file that needs nothing beside it."""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

from torch import Tensor

from ..pictures.frame_sheet import to_image
from .compare import Comparison
from .report import COLUMNS, rows_of

STYLE = ("body{font:15px/1.5 sans-serif;margin:2rem auto;max-width:1280px;color:#222}img{max-width:100%}"
         "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .6rem;border-bottom:1px solid #ddd;"
         "text-align:right}td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}pre{white-space:pre-wrap}")


def report_page(comparisons: Mapping[str, Comparison], picture: Tensor, text: str) -> str:
    """The picture, the text and all rows, the furthest first."""
    data = io.BytesIO()
    to_image(picture[0]).save(data, "PNG")
    tables = "".join(f"<h2>{escape(name)}</h2>{_table(found)}" for name, found in comparisons.items())
    image = base64.b64encode(data.getvalue()).decode()
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Attribute report</title>'
            f'<style>{STYLE}</style><h1>Attribute report</h1><img alt="report" src="data:image/png;base64,{image}">'
            f"<pre>{escape(text)}</pre>{tables}</html>\n")


def _table(found: Comparison) -> str:
    rows = sorted(rows_of(found), key=lambda row: -row["score"])
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(column))}</td>" for column in COLUMNS) + "</tr>"
                   for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape(str(value))
