"""One thread a library, here and in every process that a test starts.

Servers, workers and training under test share the cores, and pools that each take all of them get in each
other's way; sums in a fixed order also make training repeat itself exactly.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under `nohup make test &` SIGINT is ignored, by all that is started here as well, and some of that is interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.serving"]
