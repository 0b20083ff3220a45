//! The servers that a gateway is compared with: how they come, how they are started and ended.
