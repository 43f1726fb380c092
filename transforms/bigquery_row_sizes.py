"""What Beam's own inserts pay to weigh a row. Every worker imports this module when it starts.

`BigQueryWriteFn` weighs each row with objsize, which by default first lists the globals of all loaded
modules, so as not to count them: over nine tenths of what such an insert costs, for rows that refer to no
module. objsize has a setting for that, one for the process; and Beam has one place that code of ours may run
in each process before any step does, its plugins. So this module does something when it is imported.
"""

from __future__ import annotations

import objsize
from apache_beam.utils.plugin import BeamPlugin


class RowSizesAlone(BeamPlugin):  # type: ignore[misc]
    """By this name the runner tells its workers to import this module."""


objsize.default_settings.update(exclude_modules_globals=False)
