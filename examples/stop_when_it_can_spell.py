"""A callback that ends a training: as soon as nine of ten words that the model writes exist.

python examples/stop_when_it_can_spell.py [TEXT_FILE]
"""

from __future__ import annotations

import re
import sys

import fundamentallm as fl
from fundamentallm.data.corpus import open_corpus
from fundamentallm.runs import RunDirectory
from fundamentallm.training.callbacks import BaseCallback, Sampled, TrainingEnded, TrainingStarted


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


class StopWhenItCanSpell(BaseCallback):
    """Looks at every sample; a callback may ask the run to stop as anybody else may."""

    def __init__(self, known: set[str], share: float = 0.9) -> None:
        self.known = known
        self.share = share
        self.run: RunDirectory | None = None

    def on_training_started(self, event: TrainingStarted) -> None:
        """Remember which run this is."""
        self.run = RunDirectory.open(event.run)

    def on_sampled(self, event: Sampled) -> None:
        """Count the words that exist."""
        written = words(event.text)[1:-1]  # the first and the last may be cut
        share = sum(word in self.known for word in written) / max(1, len(written))
        print(f"step {event.step:4d}: {share:4.0%} of the words exist: {' '.join(event.text.split())[:70]}")
        if share >= self.share and self.run is not None:
            self.run.request_stop()

    def on_training_ended(self, event: TrainingEnded) -> None:
        """Say why it ended."""
        print(event.message)


def main(source: str = "tiny-tales") -> None:
    """Train on a text until the model can spell."""
    known = set(words(open_corpus([source]).read()))
    model = fl.train(source, preset="small", callbacks=[StopWhenItCanSpell(known)])
    print(model.generate(max_tokens=200, temperature=0.7, seed=1))


if __name__ == "__main__":
    main(*sys.argv[1:2])
