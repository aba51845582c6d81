"""The heap is made steady by programs alone, and says whether it was."""

import platform
import subprocess
import sys

ASK = "from secateur.streaming.heap import steady_heap; import sys; print(steady_heap(), 'torch' in sys.modules)"


def test_glibc_takes_the_threshold_and_nothing_heavy_is_imported():
    said = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout.split()
    assert said[1] == "False"
    assert said[0] == str(platform.libc_ver()[0] == "glibc")
