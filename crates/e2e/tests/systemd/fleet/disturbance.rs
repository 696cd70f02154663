//! What is done to the master, and how long it shows.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_e2e::machine::Machine;
use rollcall_e2e::{binaries, wait_until};
use rollcall_os::clock;
use rustix::process::{Pid, Signal, kill_process};

use super::witness::Witness;
use crate::PATIENCE;

/// One that is over.
struct Disturbance {
    kind: &'static str,
    /// The longest that one of the witnesses waited for an ack, of what was under way or made until each of
    /// them had a report acked by the process that came after.
    blackout: Duration,
    /// What the machine's PID 1 has used meanwhile.
    cpu: Duration,
}

/// All of them.
pub(crate) struct Disturbances<'a> {
    machine: &'a Machine,
    witnesses: &'a [Witness],
    over: Vec<Disturbance>,
}

impl<'a> Disturbances<'a> {
    pub(crate) fn of(machine: &'a Machine, witnesses: &'a [Witness]) -> Self {
        Self {
            machine,
            witnesses,
            over: Vec::new(),
        }
    }

    /// Runs a command that ends with another process of the master.
    pub(crate) fn replace(&mut self, kind: &'static str, command: &str) {
        let pid = self.master();
        self.disturb(kind, Some(pid), || {
            self.machine.run(command);
        });
    }

    /// Runs a command that the master's process outlives.
    pub(crate) fn run(&mut self, kind: &'static str, command: &str) {
        self.disturb(kind, None, || {
            self.machine.run(command);
        });
    }

    /// Sends the master a signal that it does not outlive.
    pub(crate) fn signal(&mut self, kind: &'static str, signal: Signal) {
        let pid = self.master();
        self.disturb(kind, Some(pid), || {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            kill_process(pid.expect("a PID"), signal).expect("the master can be signalled");
        });
    }

    /// The process of the master. systemd is not asked: that costs what is to be measured.
    fn master(&self) -> u32 {
        wait_until(PATIENCE, "the master", || {
            self.machine.process(binaries::MASTER)
        })
    }

    fn disturb(&mut self, kind: &'static str, before: Option<u32>, command: impl FnOnce()) {
        let cpu = self.machine.cpu_time_of_pid_1();
        let begun = clock::boot();
        command();
        if let Some(before) = before {
            wait_until(PATIENCE, kind, || {
                let pid = self.machine.process(binaries::MASTER)?;
                (pid != before).then_some(())
            });
        }
        let replaced = clock::boot();
        wait_until(PATIENCE, "acks for all witnesses", || {
            let mut witnesses = self.witnesses.iter();
            witnesses
                .all(|witness| witness.has_reported_since(replaced))
                .then_some(())
        });
        let over = clock::boot();
        let waits = self.witnesses.iter();
        let blackout = waits.map(|witness| witness.longest(begun, over)).max();
        self.over.push(Disturbance {
            kind,
            blackout: blackout.expect("there are witnesses"),
            cpu: self.machine.cpu_time_of_pid_1().saturating_sub(cpu),
        });
    }

    /// A line for each kind, and one for all.
    pub(crate) fn table(&self) -> String {
        let mut kinds: BTreeMap<_, Vec<&Disturbance>> = BTreeMap::new();
        for disturbance in &self.over {
            kinds.entry(disturbance.kind).or_default().push(disturbance);
        }
        let all = ("all", self.over.iter().collect());
        let lines = kinds.into_iter().chain([all]).map(|(kind, disturbances)| {
            let mut blackouts: Vec<_> = disturbances.iter().map(|one| one.blackout).collect();
            blackouts.sort();
            let (median, longest) = (
                blackouts[blackouts.len() / 2],
                blackouts[blackouts.len() - 1],
            );
            let cpu: Duration = disturbances.iter().map(|one| one.cpu).sum();
            let [median, longest, cpu] = [median, longest, cpu].map(|time| time.as_millis());
            let times = disturbances.len();
            format!("  {kind:<15} {times:>3} {median:>16} {longest:>16} {cpu:>16}\n")
        });
        let head = "  in ms         times     blackout p50     blackout max     CPU of PID 1\n";
        std::iter::once(head.to_owned()).chain(lines).collect()
    }
}
