//! The floor: a server that does only what the kernel makes every server do.
