"""One thread a library, here and in every process that a test starts.

Servers, workers and training under test share the cores, and pools that each take all of them get in each
other's way; sums in a fixed order also make training repeat itself exactly.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.serving"]
