"""``python -m longwave.benchmarks.warm_up``: compile the Numba forms of all ops now, so that no first call waits.

Compiled code is kept on disk, for each kernel, dtype and layout, with one thread and with several. Where no folder
can be written, Numba compiles in every process anew; nothing fails.
"""

from __future__ import annotations

import time

import torch

from longwave.benchmarks.examples import EXAMPLES, Shape
from longwave.benchmarks.ops import op_pass
from longwave.benchmarks.settings import Settings
from longwave.ops import available_backends

SHAPE = Shape(batch_size=1, num_tokens=130, num_heads=2, head_dim=16)
THREADS = (1, 2)
DTYPES = ("float32", "float64")


def warm_up() -> str:
    """Run every op that has a Numba form, forward and backward, with and without documents; say what was done."""
    began_at = time.monotonic()
    compiled = [op for op in EXAMPLES if "numba" in available_backends(op)]
    starts = torch.zeros(SHAPE.batch_size, SHAPE.num_tokens, dtype=torch.bool)
    starts[:, 70] = True
    for threads in THREADS:
        for dtype in DTYPES:
            settings = Settings(subject="ops", dtype=dtype, threads=threads)
            with settings.threading():
                for op in compiled:
                    for more in ({}, {"starts": starts, "return_state": True}, *EXAMPLES[op].other_kernels):
                        op_pass(op, "numba", more, "forward_backward", SHAPE, settings)()
    return f"numba: {len(compiled)} ops compiled ({', '.join(compiled)}) in {time.monotonic() - began_at:.0f} s"


if __name__ == "__main__":
    print(warm_up())
