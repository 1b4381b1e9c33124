"""For processes that a launcher starts: the official calls are made small in them, too."""

import smaller

_held = smaller.made_small(smaller.LIGHT)
_held.__enter__()
