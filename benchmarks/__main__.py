"""``python -m benchmarks <name>``: run one benchmark, print its table, write its JSON."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = {
    "time_to_loss": "from nothing to a validation loss, as whole processes",
    "throughput": "training: tokens a second, and the share of what the processor can multiply",
    "generation": "writing: time to the first token, and tokens a second after it",
    "data": "tokenizers, and preparing a text of any size in constant memory",
    "start_up": "how long one waits for the first sign of life",
    "playground_overhead": "what watching a training in the page costs it",
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names; 0, or 2 after one sentence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Repeatable measurements.")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    # Only the one that is asked for is imported.
    asked = next((name for name in arguments if name in BENCHMARKS), None)
    for name, summary in BENCHMARKS.items():
        own = names.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        own.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="where the JSON goes")
        own.add_argument("--threads", type=int, help="processor threads of torch, ours and the peers'")
        if name == asked:
            importlib.import_module(f"benchmarks.{name}").add_options(own)
    options = parser.parse_args(arguments)

    # Imported here: `--help` should not wait for torch.
    import os

    import torch

    from fundamentallm.errors import FundamentaLLMError

    if options.threads is not None:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for child processes
    try:
        with tempfile.TemporaryDirectory(prefix="fundamentallm-benchmark-", ignore_cleanup_errors=True) as directory:
            report = importlib.import_module(f"benchmarks.{options.name}").run(options, Path(directory))
        print(report.text())
        report.write(options.output)
    except FundamentaLLMError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The results cannot be written to {str(options.output)!r}: {error.strerror}.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
