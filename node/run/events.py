"""What a command tells the outside: events for scripts, sentences for people.

With ``--events json`` every event is one JSON line on stdout; people's text goes to stderr in any case. Commands that
print a result (``generate``, ``demo``) keep stdout for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Writes events and sentences; one per process."""

    def __init__(self, *, events_json: bool, out: TextIO, err: TextIO) -> None:
        self.events_json = events_json
        self._out = out
        self._err = err
        self._console = Console(file=err)

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Write one event, when events were asked for."""
        if self.events_json:
            self._out.write(json.dumps({"event": name, **fields}) + "\n")
            self._out.flush()

    def say(self, sentence: str) -> None:
        """Write one line for people."""
        self._err.write(sentence + "\n")
        self._err.flush()

    def result(self, text: str) -> None:
        """Write a piece of the command's result to stdout, or as a ``text`` event."""
        if self.events_json:
            self.event("text", {"text": text})
            return
        self._out.write(text)
        self._out.flush()

    def progress(self, *, counts: bool = False) -> ProgressBar:
        """Return a progress bar on stderr, shown where a person looks.

        Args:
            counts: whether it counts things; otherwise it counts bytes.
        """
        return ProgressBar(self._console, counts=counts)


class ProgressBar:
    """One bar for whatever takes long; drawn only on a terminal."""

    def __init__(self, console: Console, *, counts: bool = False) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if counts else DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` (bytes, or things) of ``what`` are done; safe from any thread."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
