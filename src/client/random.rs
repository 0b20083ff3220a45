//! Numbers that nobody can guess, of the kernel.

use rustix::rand::{GetRandomFlags, getrandom};

/// A key for one frame (RFC 6455 section 5.3).
pub(super) fn masking_key() -> [u8; 4] {
    bytes()
}

/// Any number, each as likely as the others.
pub(super) fn number() -> u64 {
    u64::from_ne_bytes(bytes())
}

fn bytes<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    // getrandom(2) gives up to 256 bytes whole, once the machine has started.
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(filled, Ok(LENGTH), "the kernel gives random numbers");
    bytes
}
