//! A client with permessage-deflate (RFC 7692) that goes on with its compressors where they stopped, as
//! an application does. The gateway begins each message anew and shows its compressor what was said: two
//! ways to the same bytes.

use std::net::SocketAddr;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::support::raw::{FIN, Frame, RSV1, RawClient, encode_with, request_with};

const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// An open connection on which messages may be deflated.
pub(crate) struct DeflateClient {
    pub(crate) raw: RawClient,
    /// What the gateway has answered to the offer; empty where it declined.
    pub(crate) agreed: String,
    compress: Compress,
    decompress: Decompress,
}

impl DeflateClient {
    /// Connects with this offer.
    pub(crate) async fn connect(address: SocketAddr, path: &str, offer: &str) -> Self {
        Self::open(RawClient::connect(address).await, path, offer).await
    }

    /// Does the handshake on a connection.
    pub(crate) async fn open(mut raw: RawClient, path: &str, offer: &str) -> Self {
        let header = format!("Sec-WebSocket-Extensions: {offer}\r\n");
        raw.send(&request_with(path, &header)).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let agreed = head.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions: "));
        let agreed = agreed.unwrap_or_default().to_owned();
        raw.reader.deflate = !agreed.is_empty();
        let bits = agreed.split("; ").find_map(|part| part.strip_prefix("client_max_window_bits="));
        let bits = bits.map_or(15, |bits| bits.parse().expect("a number"));
        Self {
            raw,
            agreed,
            compress: Compress::new_with_window_bits(Compression::default(), false, bits),
            decompress: Decompress::new(false),
        }
    }

    /// The parameter was agreed.
    pub(crate) fn has(&self, parameter: &str) -> bool {
        self.agreed.split("; ").any(|part| part == parameter)
    }

    /// `payload` as this client says it next.
    pub(crate) fn deflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if self.has("client_no_context_takeover") {
            self.compress.reset();
        }
        let mut deflated = Vec::with_capacity(payload.len() * 2 + 64);
        let flushed = self.compress.compress_vec(payload, &mut deflated, FlushCompress::Sync);
        assert_eq!(flushed.expect("it takes any bytes"), Status::Ok);
        assert!(deflated.ends_with(&TAIL));
        deflated.truncate(deflated.len() - TAIL.len());
        deflated
    }

    /// Sends a deflated message.
    pub(crate) async fn send_deflated(&mut self, opcode: u8, payload: &[u8]) {
        let deflated = self.deflate(payload);
        self.raw.send(&encode_with(FIN | RSV1 | opcode, &deflated)).await;
    }

    /// The next frame as it came.
    pub(crate) async fn read_frame(&mut self) -> Frame {
        self.raw.read_frame().await
    }

    /// The next data message, inflated, and whether it was deflated.
    pub(crate) async fn read_message(&mut self, opcode: u8) -> (Vec<u8>, bool) {
        let frame = self.read_frame().await;
        assert_eq!(frame.opcode, opcode, "{frame:?}");
        (self.inflate(&frame), frame.deflated)
    }

    /// The payload of `frame`, which is the next to be understood.
    pub(crate) fn inflate(&mut self, frame: &Frame) -> Vec<u8> {
        if !frame.deflated {
            return frame.payload.clone();
        }
        if self.has("server_no_context_takeover") {
            self.decompress.reset(false);
        }
        let input = [&frame.payload[..], &TAIL].concat();
        let (mut output, mut at) = (Vec::new(), 0);
        while at < input.len() {
            output.reserve(4_096);
            let before = self.decompress.total_in();
            let status =
                self.decompress.decompress_vec(&input[at..], &mut output, FlushDecompress::Sync);
            assert_ne!(status.expect("it was deflated"), Status::StreamEnd);
            at += (self.decompress.total_in() - before) as usize;
        }
        // All input is taken; the last of the output may still be on its way.
        loop {
            output.reserve(4_096);
            let before = output.len();
            _ = self.decompress.decompress_vec(&[], &mut output, FlushDecompress::Sync);
            if output.len() == before {
                return output;
            }
        }
    }
}
