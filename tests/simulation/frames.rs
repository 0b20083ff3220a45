//! RFC 6455 section 5.2 once more, as the other end knows it: client frames are made and server frames
//! understood without any code of the gateway, in the plainest way there is.

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// The bit of the first byte that says that the frame is the last of its message.
pub(crate) const FIN: u8 = 0x80;

/// A client frame with any first byte.
pub(crate) fn masked(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A server frame, which is whole: this gateway sends no fragments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// Bytes of a stream that are no whole frame yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parser(Vec<u8>);

impl Parser {
    /// The stream stands between two frames.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.0.is_empty()
    }

    /// The opcode of the frame of which a part is there.
    pub(crate) fn opcode(&self) -> Option<u8> {
        self.0.first().map(|first| first & 0xf)
    }

    /// Takes the next bytes of the stream and returns the frames that they complete.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.0.extend_from_slice(bytes);
        let (mut frames, mut at) = (Vec::new(), 0);
        while let Some((frame, frame_bytes)) = first_frame(&self.0[at..]) {
            frames.push(frame);
            at += frame_bytes;
        }
        self.0.drain(..at);
        frames
    }
}

/// The frame at the front of `bytes` and its length, once it is there.
fn first_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let &[first, second, ref rest @ ..] = bytes else {
        return None;
    };
    let opcode = first & 0xf;
    assert_eq!(first & 0xf0, FIN, "a server frame is whole and has no reserved bit");
    assert!([TEXT, BINARY, CLOSE, PING, PONG].contains(&opcode), "opcode {opcode:#x}");
    let (payload_bytes, header_bytes, least) = match second {
        short @ 0..=125 => (usize::from(short), 2, 0),
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4, 126),
        127 => (u64::from_be_bytes(*rest.first_chunk()?) as usize, 10, 0x1_0000),
        masked => panic!("the second byte is {masked:#x}: a server frame is not masked"),
    };
    assert!(payload_bytes >= least, "a length that is not in its shortest form");
    assert!(opcode < CLOSE || payload_bytes <= 125, "a control frame of {payload_bytes} bytes");
    let payload = bytes.get(header_bytes..header_bytes + payload_bytes)?.to_vec();
    Some((Frame { opcode, payload }, header_bytes + payload_bytes))
}
