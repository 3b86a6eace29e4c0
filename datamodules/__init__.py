"""Everything between files on disk and a batch. Knows no model."""

import gc
import os

# What a process has thrown away and not collected yet, its forks (loader workers, ranks) would collect:
# frames of decoders among it, whose threads the fork does not have, and for which it would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)
