"""Asks one of two processes to stop: both leave after the same step, and go on as if nothing had been.

usage: python -m tests.harness.preempt
"""

import signal
import tempfile
import time
from pathlib import Path

from tests.harness.forked import Forked, prepare
from tests.harness.kill import expect
from util.checkpoints.files import read_checkpoint
from util.processes.preemption import EXIT_PREEMPTED


def main():
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        output.mkdir()
        base = prepare(Path(folder), train=16, val=2)
        arguments = [*base, "--output_dir", str(output), "--num_workers", "0", "--options", "schedule.epochs=1"]
        run = Forked(arguments, 2, output / "said.txt")
        while "epoch 0 2/4" not in (output / "info.txt").read_text() if (output / "info.txt").is_file() else True:
            expect(run.alive(), "it ended by itself", output)
            time.sleep(0.001)
        run.send(signal.SIGTERM, [1])
        status = run.wait()
        expect(status == [EXIT_PREEMPTED] * 2, f"the processes ended with {status}", output)
        batch = read_checkpoint(output / "checkpoint.pth")["sampler"]["batch"]
        expect(batch in (2, 4), f"saved after {batch} batches, which end no step", output)
        status = Forked(arguments, 2, output / "said.txt").wait()
        expect(status == [0, 0], f"going on, the processes ended with {status}", output)
        expect(f"and {batch} batches" in (output / "info.txt").read_text(), "it went on elsewhere", output)
        print(f"both processes stopped together after {batch} batches")


if __name__ == "__main__":
    main()
