"""Read a calibration from where it lies: a file, or the package, for the bundled model.

Does not fetch anything: calibrations of other models are named by their digest in records. Reads some tens of
kilobytes; in an event loop, through ``asyncio.to_thread``.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from node.check.calibration import MAX_BYTES, Calibration, decode_calibration
from node.errors import BadCalibration

SHIPPED = Path(str(resources.files("node") / "embedded" / "calibration.json"))
"""Of the bundled model, made by ``efedllm calibrate`` (docs/trust.md says how)."""


def read_calibration(path: Path, manifest: bytes | None = None) -> Calibration:
    """Read the calibration in a file.

    Args:
        path: the file.
        manifest: of the model that it must be of; None: of any.

    Raises:
        BadCalibration: it cannot be read, or is not a calibration of that model.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadCalibration(f"The calibration {path} cannot be read ({error.strerror}); name another file.") from None
    return decode_calibration(data, manifest=manifest)


def find_calibration(manifest: bytes, path: Path | None) -> Calibration | None:
    """Return the calibration of the model ``manifest``: from a file, or the one in this package; None: there is none.

    Raises:
        BadCalibration: the file cannot be read, or is not a calibration of that model.
    """
    if path is not None:
        return read_calibration(path, manifest)
    return shipped_calibration(manifest) if SHIPPED.is_file() else None


def shipped_calibration(manifest: bytes) -> Calibration | None:
    """Return the calibration that comes with this package for the model ``manifest``; None: there is none."""
    shipped = _shipped()
    return shipped if shipped.manifest == manifest else None


@cache
def _shipped() -> Calibration:
    return read_calibration(SHIPPED)
