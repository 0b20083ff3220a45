//! A child process that ends when we do, and its temporary directory.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Runs its arguments, but for the first, as a child and prints the child's process id. When its own
/// standard input ends without a line, as it does when we end, however that happens, it ends the child
/// and removes the directory that the first argument names. The kernel's own
/// `PR_SET_PDEATHSIG` would take unsafe code, and minds the death of the thread that started the child.
const GUARD: &str = r#"
directory=$1
shift
"$@" </dev/null >/dev/null &
server=$!
echo "$server"
read -r _ && exit
kill -TERM "$server"
wait "$server"
rm -rf -- "$directory"
"#;

/// How long a server may take to end when it is asked to, before it is killed. Nobody waits for the
/// drain of the gateway, which takes seconds even without a client.
const END: Duration = Duration::from_secs(1);

/// How much of what a server has said is kept in an error.
const LOG_BYTES: usize = 4096;

/// A running server. It is ended and waited for when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    /// Its parent, which ends when it has ended.
    guard: Child,
    pid: Pid,
    /// Refers to the process even when another has got its id.
    pidfd: OwnedFd,
    directory: Directory,
}

impl Process {
    /// Starts `program`, with what it says on standard error in a file of `directory`.
    pub(super) fn start(
        directory: Directory,
        program: &Path,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> std::io::Result<Self> {
        let log = File::create(directory.log())?;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(directory.path())
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        let stdout = guard.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line.trim().parse().ok().and_then(Pid::from_raw).and_then(|pid| {
            // The guard waits for it only at the end, so that its id is not given to another.
            Some((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?))
        });
        let Some((pid, pidfd)) = pid else {
            drop(guard.stdin.take());
            guard.wait()?;
            return Err(std::io::Error::other("the shell did not start it"));
        };
        Ok(Self { guard, pid, pidfd, directory })
    }

    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Waits so long for its end. Returns whether it has ended.
    pub(super) fn wait(&self, duration: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: duration.subsec_nanos().into(),
        };
        let mut ends = [PollFd::new(&self.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut ends, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// The end of what it has said on standard error.
    pub(super) fn log(&self) -> String {
        let log = std::fs::read(self.directory.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_BYTES)..]);
        log.trim().to_owned()
    }

    /// Kills it and its children.
    pub(super) fn kill(&mut self) {
        // The children of a process that is gone have another parent, so they are asked for first.
        let children = children(self.id());
        _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        for child in children {
            if let Some(child) = i32::try_from(child).ok().and_then(Pid::from_raw) {
                _ = rustix::process::kill_process(child, Signal::KILL);
            }
        }
        self.wait(END);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM);
        if !self.wait(END) {
            self.kill();
        }
        if let Some(mut stdin) = self.guard.stdin.take() {
            _ = stdin.write_all(b"it has ended\n");
        }
        _ = self.guard.wait();
    }
}

/// The processes that a process has started and that still run.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.flat_map(|task| {
        let ids = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        ids.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()
    });
    children.collect()
}

/// A temporary directory, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn create(name: &str) -> std::io::Result<Self> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("loadtest-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Left by a process that was killed and had the same id.
        _ = std::fs::remove_dir_all(&path);
        // nginx's workers are of another user where it is started by root, and have to get through.
        std::fs::DirBuilder::new().mode(0o711).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn log(&self) -> PathBuf {
        self.0.join("stderr")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}
