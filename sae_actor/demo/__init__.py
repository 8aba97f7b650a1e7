"""The demo: a small real model, a real SAE that ships in the package, and three lines that show steering."""

from __future__ import annotations

from pathlib import Path

SAE_FOLDER = Path(__file__).with_name("sae")
"""The bundled SAE, in SAELens layout; its README says what it was trained on and which features read well."""
