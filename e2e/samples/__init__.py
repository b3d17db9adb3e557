"""The model and the adapters that the demo and the tests use; `python -m e2e.samples` makes them.

SmolLM2-135M-Instruct as GGUF and as safetensors, three adapters that a person tells apart at a glance, three with
random weights, and nine that must be refused. Start with `catalog.py`: it lists all of them.
`e2e.samples.reference` computes what PEFT itself answers.
"""

from e2e.samples.base import SampleError
from e2e.samples.catalog import BASE_NAME, BROKEN, GOOD, TRAINED, Adapter, BrokenAdapter, questions
from e2e.samples.layout import Samples
from e2e.samples.preparation import prepare

__all__ = [
    "BASE_NAME",
    "BROKEN",
    "GOOD",
    "TRAINED",
    "Adapter",
    "BrokenAdapter",
    "SampleError",
    "Samples",
    "prepare",
    "questions",
]
