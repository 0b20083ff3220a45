//! One thread of the gateway that stands still while all the others go on: a shard that is as slow as
//! a test wants it to be, for as long as it wants.

use std::fs;
use std::marker::PhantomData;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::support::gateway::Gateway;

/// A shard that stands still until this is dropped.
pub(crate) struct Frozen<'gateway> {
    thread: Pid,
    /// The gateway is there for as long as it has a thread to wake, and it is the test's thread, which
    /// the kernel takes for the debugger, that has to wake it.
    bound_to: PhantomData<(&'gateway Gateway, *const ())>,
}

impl<'gateway> Frozen<'gateway> {
    /// Stops the thread called `name` of the process `process`, as a debugger would.
    pub(crate) fn thread(_: &'gateway Gateway, process: u32, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the gateway runs");
        let mut tasks = tasks.map(|task| task.expect("a thread that has not ended").path());
        let named = |path: &std::path::PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim_end() == name)
        };
        let path = tasks.find(named).unwrap_or_else(|| panic!("no thread is called {name}"));
        let id = path.file_name().and_then(|id| id.to_str()).expect("a number");
        let thread = Pid::from_raw(id.parse().expect("a number"));
        ptrace::seize(thread, ptrace::Options::empty())
            .expect("a process may stop its child (kernel.yama.ptrace_scope is 0 or 1)");
        let frozen = Self { thread, bound_to: PhantomData };
        ptrace::interrupt(thread).expect("it is seized");
        let stopped = waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it is seized");
        assert!(matches!(stopped, WaitStatus::PtraceEvent(..)), "{stopped:?}");
        frozen
    }

    /// Lets it go on.
    pub(crate) fn thaw(self) {}
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Where the gateway has crashed there is nobody to wake.
        _ = ptrace::detach(self.thread, None);
    }
}
