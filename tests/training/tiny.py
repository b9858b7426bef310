"""A run small enough to train in a moment."""

from __future__ import annotations

from pathlib import Path

WORDS = "the quick brown fox jumps over the lazy dog and runs away from the bear"
STEPS = 10


def write_run(folder: Path, **training) -> Path:
    """A run file of ten steps on a small text, both in ``folder``."""
    text = folder / "text.txt"
    words = WORDS.split()
    text.write_text("".join(f"{words[i % 15]} {words[i * i % 13]} {i % 10}\n" for i in range(300)))
    settings = {"tokens": STEPS * 4 * 32, "batch_size": 4, "warmup_steps": 3, "learning_rate": 0.01, "seed": 7}
    settings |= training
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
model:
  mixer_types: [hale, softmax]
  hidden_size: 16
  num_hidden_layers: 2
  num_heads: 2
  mixer_kwargs: {{hale: {{window: 8, num_levels: 2}}}}
  dropout: 0.1
data: {{train: "{text}", sequence_length: 32}}
training: {{{", ".join(f"{name}: {value}" for name, value in settings.items())}}}
evaluation: {{every_steps: 5}}
"""
    )
    return path
