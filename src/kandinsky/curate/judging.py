"""Which filter is judged when: as soon as the columns that it names exist, so that nothing is done for what is dropped.

| level | what is known | what is spared for what it drops |
|---|---|---|
| ``FILE`` | what the file says of itself, its captions | decoding |
| ``SHOTS`` | where the scene lies, what cannot be decoded | frames for measures |
| ``MEASURES`` | measures that need no weights | measures that do |
| ``COSTLY`` | measures that need weights | captions that a model writes |
| ``CAPTIONS`` | those captions, where some are written | |
| ``REPEATS`` | which scenes repeat another (`duplicate`); buckets | |
| ``SHARES`` | what all scenes that are left are like (`percentile`) | |
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import numpy as np

from kandinsky.curate import measures, scenes
from kandinsky.curate.rules import Rules
from kandinsky.curate.stages import Rows


class Level(IntEnum):
    """What is known of a scene; see the top of this module."""

    FILE, SHOTS, MEASURES, COSTLY, CAPTIONS, REPEATS, SHARES = range(7)


AMONG = (Level.REPEATS, Level.SHARES)  # levels whose filters compare scenes
_OF_FILE = (
    *("dataset_name", "source", "prompt", "container", "video_codec", "width", "height", "fps"),
    *("wrong_container", "aesthetic_score", "caption_count", "caption_faults"),
)
_OF_ALL = ("duplicate", "bucket_seconds")
_OF_CAPTIONS = ("prompt", "caption_count", "caption_faults")


class Judge:
    """Judges scenes by rules.

    Args:
        rules: The rules.

    Raises:
        RequestError: An expression names no column, or does not fit what a column holds.
    """

    def __init__(self, rules: Rules) -> None:
        self._names, self._writes = rules.measures, rules.captions.is_on
        self._order = list(rules.filters)
        empty = scenes.columns_of([], rules.measures)
        self._levels: dict[Level, list[str]] = {level: [] for level in Level}
        self._filters = rules.filters
        for name, rule in rules.filters.items():
            rule.holds(empty)
            level = max((self._level(column) for column in rule.names), default=Level.FILE)
            self._levels[Level.SHARES if rule.is_relative else level].append(name)

    def _level(self, column: str) -> Level:
        if self._writes and column in _OF_CAPTIONS:
            return Level.CAPTIONS
        if column in _OF_FILE:
            return Level.FILE
        if column in _OF_ALL:
            return Level.REPEATS
        for name in self._names:
            if column in measures.MEASURES[name].gives:
                return Level.COSTLY if measures.MEASURES[name].is_costly else Level.MEASURES
        return Level.SHOTS

    def judge(self, rows: Rows, level: Level) -> None:
        """Add the filters of a level that scenes do not pass to their `dropped_by`, in the order of the rules."""
        names = self._levels[level]
        if not names or not rows:
            return
        columns = scenes.columns_of(rows, self._names)
        verdicts = {name: self._filters[name].holds(columns) for name in names}
        for number, row in enumerate(rows):
            failed = {name for name in names if not verdicts[name][number]}
            row["dropped_by"] = [name for name in self._order if name in failed or name in row["dropped_by"]]

    def reads(self, level: Level) -> list[str]:
        """Columns that the filters of a level name."""
        return sorted({column for name in self._levels[level] for column in self._filters[name].names})

    def failed(self, columns: Mapping[str, np.ndarray], level: Level) -> dict[str, np.ndarray]:
        """Which rows do not pass each filter of a level, bool, from whole columns; in the order of the rules."""
        return {name: ~self._filters[name].holds(columns) for name in self._levels[level]}
