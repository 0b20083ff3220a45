//! Where a test keeps its files and sockets.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A path that no other test uses. At first nothing is there; what is there in the end goes with it.
pub(crate) struct Place(PathBuf);

impl Place {
    /// `name` is the end of it, and may begin with anything.
    pub(crate) fn new(name: &str) -> Self {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        let number = TAKEN.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}-{name}", std::process::id());
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    /// With a file that holds `text`.
    pub(crate) fn file(name: &str, text: &str) -> Self {
        let place = Self::new(name);
        place.write(text);
        place
    }

    /// With an empty folder.
    pub(crate) fn folder(name: &str) -> Self {
        let place = Self::new(name);
        fs::create_dir(&place.0).expect("the directory for tests can be written to");
        place
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.0, text).expect("the directory for tests can be written to");
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn text(&self) -> &str {
        self.0.to_str().expect("the path is UTF-8")
    }

    /// What is called `name` in the folder that is here.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0).or_else(|_| fs::remove_file(&self.0));
    }
}
