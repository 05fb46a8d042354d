//! Temporary folders that leave the logs behind when a test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use tempfile::TempDir;

/// A temporary folder, removed on `Drop`; while the thread panics only what is no log is removed.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let prefix = format!("dashstream-{name}-");
        Self(tempfile::Builder::new().prefix(&prefix).tempdir().expect("make a temporary folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !thread::panicking() {
            return; // the folder goes with the `TempDir`
        }
        self.0.disable_cleanup(true);
        for entry in fs::read_dir(self.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            // What cannot be removed stays: there is nobody to tell, and the test has failed already.
            if path.is_dir() {
                fs::remove_dir_all(path).ok();
            } else if path.extension().is_none_or(|extension| extension != "log") {
                fs::remove_file(path).ok();
            }
        }
    }
}
