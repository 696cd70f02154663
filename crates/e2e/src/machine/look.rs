//! Looks into the machine from outside, which cost its PID 1 nothing.

use std::fs;
use std::time::Duration;

use super::Machine;
use crate::Namespace;

impl Machine {
    /// Its network.
    ///
    /// # Panics
    /// If the machine has ended.
    #[track_caller]
    pub fn network(&self) -> Namespace {
        match Namespace::of_process(self.leader) {
            Ok(namespace) => namespace,
            Err(error) => panic!("the machine has no network: {error}"),
        }
    }

    /// The process in it that runs `program`, by its PID on this host.
    pub fn process(&self, program: &str) -> Option<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let its = namespace(self.leader)?;
        // Shortened as the kernel does it.
        let program = program.get(..15).unwrap_or(program);
        let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(|pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == program) && namespace(*pid).as_ref() == Some(&its)
        })
    }

    /// The CPU time that its PID 1 has used since it was started.
    ///
    /// # Panics
    /// If the machine has ended.
    #[track_caller]
    pub fn cpu_time_of_pid_1(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.leader));
        // proc(5): the fields after the name, which ends with the last parenthesis, begin with the third;
        // utime is the 14th and stime the 15th.
        let ticks = stat.ok().and_then(|stat| {
            let (_, fields) = stat.rsplit_once(") ")?;
            let mut fields = fields.split(' ').skip(14 - 3);
            let (user, system) = (fields.next()?, fields.next()?);
            Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
        });
        let Some(ticks) = ticks else {
            panic!("PID 1 of the machine is gone");
        };
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}
