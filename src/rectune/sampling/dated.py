"""A template that writes today's date is kept in a file, so that a run resumed on another day reads the same."""

from __future__ import annotations

from pathlib import Path

from rectune.data.chat_template import choose_template, without_date
from rectune.data.trained_prompt import TEMPLATE
from rectune.models.load import load_tokenizer
from rectune.runtime.io import translate_disk_errors, write_text


def kept_template(folder: Path, name: str, model: str) -> str:
    """`name`; where the template reads the clock, a file in `folder` that writes the day of the first call.

    Args:
        model: Whose tokenizer it is for.

    Raises:
        UserError: The template cannot be used, or the folder cannot be written.
    """
    template = choose_template(name, load_tokenizer(model)) if name != "none" else None
    if template is None or not template.today:
        return name
    path = folder / TEMPLATE
    with translate_disk_errors(folder):
        if not path.is_file() or without_date(path.read_text("utf-8")) != template.saved():
            write_text(path, template.kept())
    return str(path)
