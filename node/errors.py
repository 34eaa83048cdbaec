"""Errors of the node package.

NodeError
├── LocalError            our own misuse or a bug: fix the code
├── UserError (ValueError)  the user's input: the message holds the mend
├── RemoteError           a peer broke the protocol: close, count, go on
└── UnavailableError      timeout, gone, full: try elsewhere or later

This file knows nothing of exit codes: ``node.cli`` maps the families below to them.
"""


class NodeError(Exception):
    """Root of every error that this package raises on purpose."""


class LocalError(NodeError):
    """Misuse of our own code, or a bug in it."""


class CannotSign(LocalError):
    """Our ledger does not take what we would sign; the message holds the mend."""


class ComputeFailed(LocalError):
    """Work in the compute thread raised what it should not have; the log has the traceback."""


class UserError(NodeError, ValueError):
    """Bad input of a user; the message is one sentence that ends with the mend."""


class ModelNotFound(UserError):
    """No checkpoint stands at the given path or hub id."""


class UnsupportedFamily(UserError):
    """The model's family cannot be split into spans; named before any weight is read."""


class BadBlocks(UserError):
    """A block range is empty, malformed or outside the model."""


class DamagedCheckpoint(UserError):
    """A weight file cannot be read, or holds other tensors than its config asks for."""


class ConfigMismatch(DamagedCheckpoint):
    """The files are sound, but config and weights do not describe the same model."""


class PromptTooLong(UserError):
    """Prompt and new tokens do not fit into the maximum length."""


class DoesNotFit(UserError):
    """The span does not fit into the memory of the machine."""


class QuantizerMissing(UserError):
    """What is needed to compute with quantised weights is not on this machine."""


class BadCalibration(UserError):
    """A calibration file cannot be used: damaged, of another version, or of another model."""


class RemoteError(NodeError):
    """A peer sent what the protocol does not allow."""


class FrameError(RemoteError):
    """A frame is malformed: wrong length, unknown field, impossible value."""


class SessionError(RemoteError):
    """A frame is well-formed but not allowed in the session's present state."""


class StageAtFault(RemoteError):
    """One stage of a session, known by name, has not kept to what it agreed to."""

    def __init__(self, peer_id: str, reason: str) -> None:
        super().__init__(f"The stage {peer_id} {reason}.")
        self.peer_id = peer_id
        self.reason = reason


class FalseBytes(RemoteError):
    """A peer hands out something else than what it was asked for by its hash."""


class FalseEvidence(RemoteError):
    """Evidence does not show what the claim says; whether the work was right need not be looked at."""


class BadOpening(RemoteError):
    """What a stage has opened of its work contradicts itself: sizes, positions or rows do not fit together."""


class UnavailableError(NodeError):
    """A peer, a block or a resource is not there now."""


class CannotCheck(UnavailableError):
    """Work cannot be checked here: no calibration says what is honest, or it is larger than was allowed."""


class MissingBlocks(UnavailableError):
    """No announced server holds some blocks of the model."""


class NotRunning(UnavailableError):
    """No server of this user runs with the state directory that was named."""


class NotStored(UnavailableError):
    """No member of a swarm keeps a record that we wanted to stand there."""


class StageLost(UnavailableError):
    """A stage of a running session is gone."""


class Refused(UnavailableError):
    """A stage declined politely; ``retry_after_s`` says when to ask again."""

    def __init__(self, code: str, message: str, *, retryable: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.retry_after_s = retry_after_s
