//! What a process tree costs, from the kernel's own accounting.

use std::{fs, io, time::Duration};

use nix::{time::clock_getcpuclockid, unistd::Pid};

/// Meters one process and all its descendants, or nothing.
pub struct Meter {
    root: Option<i32>,
}

impl Meter {
    pub fn new(root: Option<i32>) -> Self {
        Self { root }
    }

    /// CPU time of all threads so far, ended ones too, in nanosecond resolution (clock_getcpuclockid(3)).
    pub fn cpu(&self) -> io::Result<Duration> {
        self.tree()?.into_iter().try_fold(Duration::ZERO, |sum, pid| {
            let time = clock_getcpuclockid(Pid::from_raw(pid))?.now()?;
            Ok(sum + Duration::from(time))
        })
    }

    /// Proportional set size in KiB (`Pss` of /proc/PID/smaps_rollup).
    pub fn pss_kib(&self) -> io::Result<u64> {
        self.tree()?.into_iter().try_fold(0, |sum, pid| {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
            let kib: u64 = pss.trim().trim_end_matches(" kB").parse().map_err(io::Error::other)?;
            Ok(sum + kib)
        })
    }

    fn tree(&self) -> io::Result<Vec<i32>> {
        let Some(root) = self.root else { return Ok(Vec::new()) };
        let parents = parents()?;
        let mut tree = vec![root];
        let mut next = 0;
        while let Some(&parent) = tree.get(next) {
            tree.extend(parents.iter().filter(|&&(_, of)| of == parent).map(|&(pid, _)| pid));
            next += 1;
        }
        Ok(tree)
    }
}

/// Every process and its parent.
fn parents() -> io::Result<Vec<(i32, i32)>> {
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| Some((pid, parent(pid)?))).collect())
}

/// The parent in /proc/PID/stat, whose second field may itself hold spaces and parentheses; `None` when it has ended.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn counts_descendants() {
        let me = Meter::new(Some(std::process::id() as i32));
        let alone = me.tree().expect("readable");
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat starts");
        assert!(me.tree().expect("readable").contains(&(child.id() as i32)));
        assert!(!alone.contains(&(child.id() as i32)));
        drop(child.stdin.take());
        child.wait().expect("ended");
    }

    #[test]
    fn time_and_memory_are_this_process_own() {
        let me = Meter::new(Some(std::process::id() as i32));
        let before = me.cpu().expect("a clock");
        let sum: u64 = std::hint::black_box((0..3_000_000u64).fold(0, |sum, n| sum ^ n.rotate_left(7)));
        assert!(me.cpu().expect("a clock") > before, "{sum}");
        assert!(me.pss_kib().expect("a rollup") > 100);
        assert_eq!(Meter::new(None).cpu().expect("nothing to read"), Duration::ZERO);
    }
}
