//! What does the server's process use? Read from `/proc`, the processes that it has started included.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use thiserror::Error;

/// A process of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerProcess {
    pid: u32,
}

/// What it has used until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time of all threads.
    pub(crate) cpu: Duration,
    /// Anonymous resident memory in bytes: not what is mapped from files.
    pub(crate) memory: u64,
}

/// There is no such process, or nothing can be learnt about it.
#[derive(Debug, Error)]
#[error("server-pid is {0}, but there is no such process that we may look at")]
pub(crate) struct NoSuchProcess(u32);

impl ServerProcess {
    /// The process `pid`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn new(pid: u32) -> Result<Self, NoSuchProcess> {
        let process = Self { pid };
        match threads_cpu(pid) {
            Some(_) => Ok(process),
            None => Err(NoSuchProcess(pid)),
        }
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// Whether it is still there.
    pub(crate) fn is_alive(self) -> bool {
        // A process that has ended and is not waited for has no threads' times any more.
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.starts_with(" Z")))
    }

    /// What it and its descendants have used.
    pub(crate) fn usage(self) -> Usage {
        let mut usage = Usage::default();
        for pid in self.family() {
            usage.cpu += threads_cpu(pid).unwrap_or_default();
            usage.memory += anonymous_memory(pid).unwrap_or_default();
        }
        usage
    }

    /// How many descriptors it has open; its children's do not count.
    pub(crate) fn descriptors(self) -> Option<u64> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
        Some(open.count() as u64)
    }

    fn family(self) -> Vec<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if let Some(parent) = parent(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut family = vec![self.pid];
        let mut next = 0;
        while let Some(pid) = family.get(next) {
            if let Some(children) = children.remove(pid) {
                family.extend(children);
            }
            next += 1;
        }
        family
    }
}

/// The fourth field of `stat`; the second is a name in brackets that may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn threads_cpu(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let times = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(nanoseconds.sum()))
}

fn anonymous_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_uses_cpu_and_memory_and_its_children_count() {
        let process = ServerProcess::new(std::process::id()).unwrap();
        let before = process.usage();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(process.family().contains(&child.id()));
        let kept = std::hint::black_box(vec![1u8; 32 << 20]);
        let after = process.usage();
        assert!(after.cpu > before.cpu && after.memory > before.memory, "{before:?} {after:?}");
        drop((kept, child.stdin.take()));
        child.wait().unwrap();
        assert!(process.is_alive());
    }

    #[test]
    fn process_that_is_not_there_is_an_error() {
        let error = ServerProcess::new(u32::MAX).unwrap_err();
        assert!(error.to_string().contains("server-pid is 4294967295"), "{error}");
    }
}
