"""What the system holds of a connection besides its transport."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios


def reset(transport: asyncio.Transport) -> None:
    """Abort the connection. Closing it would wait until the peer has read the bytes left here and in the system."""
    connection = transport.get_extra_info("socket")
    if connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def unread(transport: asyncio.Transport) -> int:
    """How many bytes the peer has not read: in the transport and in the system. The system buffers megabytes, so
    the transport's part alone can stay the same for longer than the limit."""
    left = transport.get_write_buffer_size()
    file = transport.get_extra_info("socket").fileno()
    if file < 0:
        return left
    (queued,) = struct.unpack("i", fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)))
    return left + int(queued)
