"""Runs the comparisons, and says how far apart the programs are. See README.md."""

import logging
import shutil
import sys
from pathlib import Path

import torch
import transformers

import adapters
import families
import quantization
import scores
import smollm2
import sentences
from tools import Bench

CHECKS = {
    "families": families.check,
    "adapters": adapters.check,
    "scores": scores.check,
    "quantization": quantization.check,
    "sentencepiece": sentences.check,
    "smollm2": smollm2.check,
}


def main() -> int:
    scratch = Path(sys.argv[1])
    wanted = sys.argv[2:] or list(CHECKS)
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown:
        print(f"no check is called {unknown[0]}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    bench = Bench(scratch, work)
    for name in wanted:
        print(f"{name}:", flush=True)
        CHECKS[name](bench)
    shutil.rmtree(work, ignore_errors=True)
    print(f"{bench.passed} comparisons agree" + (f", {len(bench.failed)} do not:" if bench.failed else ""))
    for line in bench.failed:
        print(f"  {line}")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
