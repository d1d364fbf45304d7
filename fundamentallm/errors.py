"""The errors a user can cause.

Every one carries a single sentence that names what was wrong and says what to do. The command line and the playground
show that sentence and nothing else; any other exception is a bug and may crash loudly.
"""


class FundamentaLLMError(Exception):
    """Base of every error that a user can cause and repair."""


class ConfigError(FundamentaLLMError):
    """A setting is unknown, out of range, or contradicts another one."""


class CorpusError(FundamentaLLMError):
    """A text cannot be read, or cannot be trained on."""


class CheckpointError(FundamentaLLMError):
    """A checkpoint is missing, damaged, or not one of ours."""


class RunError(FundamentaLLMError):
    """A run directory is missing, busy, or cannot do what was asked."""


class TrainingError(FundamentaLLMError):
    """Training cannot start or cannot go on."""


class GenerationError(FundamentaLLMError):
    """A prompt or a generation setting cannot be used."""


class HubError(FundamentaLLMError):
    """The Hugging Face Hub cannot be reached, or refuses what was asked of it."""
