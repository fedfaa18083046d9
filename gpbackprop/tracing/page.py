"""A trace as one HTML page that needs nothing else."""

import json
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")


def page(trace: dict[str, Any]) -> str:
    """The HTML text of a page that draws the network of a trace and its numbers, step by step."""
    data = json.dumps(trace).replace("<", "\\u003c")  # no name in the data ends the script
    return TEMPLATE.read_text(encoding="utf-8").replace("/*TRACE*/", data)
