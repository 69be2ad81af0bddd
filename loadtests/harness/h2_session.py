"""One HTTP/2 connection over asyncio streams, for the client and for the scripted upstream.

The `h2` package keeps the protocol's state; this adds the socket, flow control and one event queue for each stream. It checks
nothing that the peer sends beyond what `h2` must know: what arrives is recorded as it came.
"""

import asyncio

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hyperframe.frame

WINDOW = 16 * 1024 * 1024


class H2Session:
    """`on_stream(stream id)` is called for each stream that the peer opens (server side only)."""

    def __init__(self, reader, writer, client, on_stream=None):
        self.reader, self.writer, self.on_stream = reader, writer, on_stream
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=client,
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        # After a GOAWAY `h2` takes no more frames at all; but the streams that run are still to be finished (RFC 9113 6.8).
        self.connection._frame_dispatch_table[hyperframe.frame.GoAwayFrame] = self._take_goaway
        self.queues = {}
        self.records = {}  # of streams that the other side opened, for who wants to know how they ended
        self.goaway = None
        self.closed = None
        self._window = asyncio.Event()
        self._task = None

    def _take_goaway(self, frame):
        self.goaway = int(frame.error_code)
        return [], []

    def start(self, settings=None):
        self.connection.local_settings = h2.settings.Settings(
            client=self.connection.config.client_side,
            initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW, h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1000, **(settings or {})},
        )
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(WINDOW)
        self.flush()
        self._task = asyncio.create_task(self._read())
        return self

    def queue(self, stream):
        return self.queues.setdefault(stream, asyncio.Queue())

    def flush(self):
        data = self.connection.data_to_send()
        if data and not self.writer.is_closing():
            self.writer.write(data)

    def headers(self, stream, headers, end=False):
        self.connection.send_headers(stream, headers, end_stream=end)
        self.flush()

    async def data(self, stream, data, end=False):
        """Sends `data` as the peer's windows allow it."""
        while data:
            room = min(self.connection.local_flow_control_window(stream), self.connection.max_outbound_frame_size)
            if room <= 0:
                self._window.clear()
                await self._window.wait()
                continue
            piece, data = data[:room], data[room:]
            self.connection.send_data(stream, piece, end_stream=end and not data)
            self.flush()
            await self.writer.drain()
        if end and data == b"" and not self._ended(stream):
            self.connection.end_stream(stream)
            self.flush()

    def _ended(self, stream):
        state = self.connection.streams[stream].state_machine.state.name
        return state in ("HALF_CLOSED_LOCAL", "CLOSED")

    def reset(self, stream, code):
        self.connection.reset_stream(stream, error_code=code)
        self.flush()

    async def _read(self):
        self.closed = "closed"
        try:
            while data := await self.reader.read(65536):
                for event in self.connection.receive_data(data):
                    self._take(event)
                self.flush()
        except h2.exceptions.ProtocolError as error:
            self.closed = f"protocol error: {type(error).__name__}"
            self.flush()
        except (ConnectionError, OSError):
            self.closed = "reset"
        finally:
            self._window.set()
            for queue in self.queues.values():
                queue.put_nowait(None)

    def _take(self, event):
        if isinstance(event, h2.events.DataReceived):
            self.connection.increment_flow_control_window(max(1, event.flow_controlled_length))
            self._grow_stream(event)
        if isinstance(event, h2.events.StreamReset) and event.stream_id in self.records:
            self.records[event.stream_id].reset = int(event.error_code)
        if isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self._window.set()
        elif isinstance(event, h2.events.RequestReceived):
            self.queue(event.stream_id).put_nowait(event)
            self.on_stream(event.stream_id)
        elif (stream := getattr(event, "stream_id", None)) is not None and stream in self.queues:
            self.queues[stream].put_nowait(event)

    def _grow_stream(self, event):
        try:
            self.connection.increment_flow_control_window(max(1, event.flow_controlled_length), event.stream_id)
        except (h2.exceptions.StreamClosedError, KeyError):
            pass  # The stream ended with this very frame.

    def stop(self):
        if self._task:
            self._task.cancel()
        self.writer.close()
