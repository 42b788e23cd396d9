"""Names of the log messages that somebody may want to be woken by: journald's MESSAGE_ID.

Stable: alerts are written with them. `journalctl MESSAGE_ID=…` finds all messages of one kind;
README.md has the table. A log call passes one as `extra={"MESSAGE_ID": messages.LIBVIRT_LOST}`.
"""

from __future__ import annotations

from typing import Final

READY: Final = "4b6e4f1f0e9b4d6f9a5e0c3f0f2a7d11"
ENDING: Final = "0c5f2b8e7d1a4c39b6f08e5d7a94c312"
FAULT: Final = "a3d97c2e5b8f4e61902d7c4b8e15fa13"
CALL_FAULT: Final = "d81e6a0b3f754c2fa9b4e07d52c86314"
LIBVIRT_LOST: Final = "5e2c9f7a1d3b48e6b07f4a8c6d92e515"
LIBVIRT_BACK: Final = "f7a40b6d8c2e4915a3d86e1b0c5f7216"
JOURNAL_UNWRITABLE: Final = "2d8b5e0f6a7c4319be41d09c7f3a8617"
JOURNAL_WRITABLE: Final = "8f16c3a97e0d4b52a6c97d4e1b28f018"
JOURNAL_SET_ASIDE: Final = "c94f7b1e2a6d4083b5e0f92d6c71a819"
BALLAST_RELEASED: Final = "6a0d3e8c9f1b4752a8d64c0e7b35f91a"
WRITER_HANGS: Final = "e1b7950c4d8f4a26b39c0f6e2d74a81b"
OPERATION_FAILED: Final = "37c2f8e05a9b4d1e8f60b7a3d94c521c"
CALLER_REFUSED: Final = "9d5a1c7e3b0f4862a7e49f1d8c60b21d"
CERTIFICATE_REFUSED: Final = "1f8e4d0b6c9a4375be20c8f5a7d3961e"
TLS_FILES_REFUSED: Final = "3d67d2d72964452eb06f13d37730a375"
SETTINGS_REFUSED: Final = "b06f9a2c8e7d4154a1c3d7e0f5b8291f"
SETTINGS_RELOADED: Final = "74e1d5b8a0c34f2f9b6d8e0c1a7f5320"
