//! What does an operator do at the command line beside running the gateway?
//!
//! - [`token`]: make a token, and check one.

pub mod token;
