"""Prompts to learn from: a text box, or a file that it names."""
from __future__ import annotations

from pathlib import Path

import folder_paths


def prompts_of(text: str) -> list[str]:
    """The lines of a text, or of the .txt file that it names. Raises ValueError for a file that is not there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and lines[0].lower().endswith(".txt"):
        path = Path(folder_paths.get_input_directory(), lines[0].strip('"')).expanduser()
        if not path.is_file():
            raise ValueError(f"There is no file {path}. Give the path of a text file with one prompt a line, absolute "
                             "or in the input folder, or write the prompts themselves.")
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines
