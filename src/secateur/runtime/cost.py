"""Whether a probe pays: what it costs, and what the pruned batch saves, in the work of the same machine."""

import math
from dataclasses import dataclass

from secateur.runtime.probe import Probe
from secateur.runtime.selection import counts


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A half is probed where probe and copying the kept weights take at most `share` of what its narrower products save.

    `flops_per_byte`: floating-point operations that pass while a byte is read or written. 50 lies between float32 and bf16 on the
    two-core CPU of docs/benchmarks.md. `share=inf` always probes, 0 never.
    """

    share: float = 0.5
    flops_per_byte: float = 50.0

    def pays(self, *, batch: int, length: int, probe: Probe, ahead: int, kept: float, total: int, item: int) -> bool:
        """`ahead`: weights that the probe runs through; `total`: of the whole half; `kept`: the fraction that stays; `item`: bytes of
        a weight."""
        if not math.isfinite(self.share):
            return True
        samples, tokens = counts(batch, length, probe)
        probing = 2 * samples * tokens * ahead
        copying = 2 * kept * total * item * self.flops_per_byte
        saved = 2 * batch * length * (1 - kept) * total
        return probing + copying <= self.share * saved
