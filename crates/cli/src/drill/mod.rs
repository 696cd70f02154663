//! `rollcall drill`: ends and starts a master and its slaves under load, and says what came of it.
//!
//! ```text
//!   slave 1 ─┐                                     the drill sees for itself
//!   slave 2 ─┼──> relay ──> master ──> master.db     relay      what was sent, what was acked, when
//!   slave N ─┘                                       spool.db   what a slave owes, read while it is down
//!                                                    master.db  what is stored, read while it is down
//! ```
//! It is no proof that the master's own counters agree with each other. So the verdict compares what
//! passed on the wire, and what lay in the spools, with what the database holds: report by report,
//! in order, with its content. Only then is the roll that the master shows held against it.

mod args;
mod configs;
mod fleet;
mod folder;
mod plan;
mod relay;
mod spool;
mod stored;
#[cfg(test)]
mod testing;
mod verdict;
mod witness;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, bail};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::api::SlaveRow;

pub(crate) use self::args::{DrillArgs, HELP};
use self::fleet::{Fleet, Seat};
use self::folder::Folder;
use self::plan::{Plan, Strike};
use self::stored::{History, Stored};
use self::verdict::{AllRestarts, Findings, Restarts, Verdict, grouped};
use self::witness::Blow;
use crate::daemons;
use crate::terminal::json;
use crate::terminal::output::Output;
use crate::terminal::time;

/// How often the drill looks around.
const TURN: Duration = Duration::from_millis(20);
/// How often the redo is read while the master runs.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How often a line of progress is printed.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// How long all may take to be on the roll at the start.
const START_MAX: Duration = Duration::from_secs(30);
/// How long everything may take to be delivered at the end.
const SETTLE_MAX: Duration = Duration::from_secs(90);
/// How long nothing of it may be acked before it is given up.
const STUCK_AFTER: Duration = Duration::from_secs(15);
/// How long the relay may take to read what a dead master has left.
const HEAR_MAX: Duration = Duration::from_secs(5);
/// How long a strike waits for the ack that it is to follow.
const ACK_MAX: Duration = Duration::from_millis(500);
/// How long the roll may lag behind the store.
const ROLL_MAX: Duration = Duration::from_secs(5);
/// The master is restarted before so many bytes of reports: at 16 MiB it would take redo away that
/// may not have been read.
const REDO_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Runs the drill and prints its verdict.
///
/// # Errors
/// If the verdict is a bad one, or there is none because the drill can't be run.
pub(crate) fn run(args: &DrillArgs, out: &mut Output) -> anyhow::Result<()> {
    let (interrupt, interrupts) = mpsc::channel();
    daemons::on_stop_signal(move |name| interrupt.send(name).is_ok())
        .context("can't listen to signals")?;
    let folder = Folder::new(args.dir.as_deref())?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("no random numbers from the system")? >> 32,
    };
    let mut drill = Drill {
        plan: Plan::new(args, seed),
        fleet: Fleet::new(args, folder.path())?,
        args,
        seed,
        stored: Stored::default(),
        interrupts,
        interrupted: false,
        out,
    };
    drill.say(&format!(
        "folder  {}\nseed    {seed}",
        folder.path().display()
    ))?;
    let verdict = drill.run()?;
    drop(drill.fleet);
    if args.json {
        out.line(&json::pretty(&verdict)?)?;
    } else {
        let look = out.look();
        for line in verdict.lines(look) {
            out.line(&line)?;
        }
    }
    if verdict.passed {
        folder.done();
        return Ok(());
    }
    bail!(
        "the drill has failed; databases and logs are kept in {}",
        folder.keep().display()
    )
}

struct Drill<'a> {
    args: &'a DrillArgs,
    seed: u64,
    plan: Plan,
    fleet: Fleet,
    stored: Stored,
    interrupts: Receiver<&'static str>,
    interrupted: bool,
    out: &'a mut Output,
}

impl Drill<'_> {
    fn run(&mut self) -> anyhow::Result<Verdict> {
        self.fleet.start_all()?;
        let began = clock::boot();
        if self.wait_for_all()? {
            self.say(&format!(
                "up      {} slaves; daemons are ended and started for {}",
                self.args.slaves, self.args.duration
            ))?;
            self.load()?;
        }
        let load = clock::boot().saturating_since(began);
        if self.interrupted {
            self.say("stopped: what is under way is delivered first")?;
        }
        let restarts = self.restarts();
        let settled = self.settle()?;
        self.conclude(load, restarts, settled)
    }

    /// Waits until every slave has had an ack; whether the drill can begin.
    fn wait_for_all(&mut self) -> anyhow::Result<bool> {
        let deadline = clock::boot() + START_MAX;
        let all = usize::from(self.args.slaves);
        loop {
            let acked = {
                let witness = self.fleet.relay.witness();
                let streams = witness.streams.values();
                streams.filter(|seen| seen.acked > 0).count()
            };
            if acked >= all {
                return Ok(true);
            }
            if self.pause(TURN) {
                return Ok(false);
            }
            if self.fleet.look_for_deaths()? {
                bail!(self.fleet.faults.join("\n"));
            }
            if clock::boot() >= deadline {
                bail!(
                    "only {acked} of {all} slaves were acked within {} s",
                    START_MAX.as_secs()
                );
            }
        }
    }

    /// Ends and starts daemons until the time is over or a signal comes.
    fn load(&mut self) -> anyhow::Result<()> {
        let began = clock::boot();
        let end = began + self.args.duration.get();
        let mut strike_at = began + self.plan.wait();
        let mut read_at = began + READ_EVERY;
        let mut progress_at = began + PROGRESS_EVERY;
        loop {
            let now = clock::boot();
            if now >= end {
                return Ok(());
            }
            if now >= strike_at {
                let strike = self.plan.strike();
                self.strike(&strike)?;
                strike_at = clock::boot() + self.plan.wait();
            } else if self.fleet.relay.witness().bytes_to_master >= REDO_BYTES_MAX {
                self.strike(&Strike {
                    blow: Blow::Planned,
                    master: true,
                    slaves: Vec::new(),
                    at_ack: false,
                    pause: Duration::ZERO,
                })?;
            } else if now >= read_at {
                self.read_redo()?;
                read_at = now + READ_EVERY;
            }
            if now >= progress_at {
                self.progress(now.saturating_since(began))?;
                progress_at = now + PROGRESS_EVERY;
            }
            self.revive()?;
            if self.pause(TURN) || self.interrupted {
                return Ok(());
            }
        }
    }

    /// Ends who is to be ended, looks at what they have on disk, and starts them again.
    fn strike(&mut self, strike: &Strike) -> anyhow::Result<()> {
        self.revive()?;
        for at in &strike.slaves {
            let name = &self.fleet.slaves[*at].name;
            self.fleet.relay.witness().slave_ended(name);
        }
        if strike.at_ack {
            self.fleet.relay.wait_for_ack(ACK_MAX);
        }
        // Slaves that are asked to end deliver first, for which they need the master. Those that are
        // killed go after it, while they still have what it has said.
        if strike.blow == Blow::Planned {
            self.fleet.end_slaves(strike.blow, &strike.slaves)?;
        }
        if strike.master {
            self.end_master(strike.blow)?;
        }
        self.fleet.end_slaves(strike.blow, &strike.slaves)?;
        let up_at = clock::boot() + strike.pause;
        for at in &strike.slaves {
            self.look_at_spool(*at)?;
        }
        if strike.master {
            self.look_at_store()?;
        }
        self.pause(up_at.saturating_since(clock::boot()));
        self.fleet.start_all()
    }

    /// Ends the master and hears out what it has said.
    fn end_master(&mut self, blow: Blow) -> anyhow::Result<()> {
        let now = clock::boot();
        self.fleet.end_master(blow)?;
        if !self.fleet.relay.hear_out(HEAR_MAX) {
            self.fleet
                .fault("connections to a dead master stay open".to_owned());
        }
        // Only now: an ack that was still under way must not end the blackout.
        self.fleet.relay.witness().master_ended(blow, now);
        Ok(())
    }

    /// Starts those who have ended by themselves, which is a fault.
    fn revive(&mut self) -> anyhow::Result<()> {
        if self.fleet.look_for_deaths()? {
            self.fleet.start_all()?;
        }
        Ok(())
    }

    /// The slave is down: what is in its spool?
    fn look_at_spool(&mut self, at: usize) -> anyhow::Result<bool> {
        let Some(held) = spool::read(&self.fleet.slaves[at].database())? else {
            return Ok(true);
        };
        let mut witness = self.fleet.relay.witness();
        witness.spool(held.slave, &held.entries);
        // An entry that was acked is deleted later: what matters is what was not.
        let ends = witness.ends_of(held.slave);
        Ok(witness.owed(&ends) == 0)
    }

    /// The master is down: is on disk what it has acked?
    fn look_at_store(&mut self) -> anyhow::Result<()> {
        self.read_redo()?;
        let mut witness = self.fleet.relay.witness();
        self.stored.check_acks(&witness);
        witness.bytes_to_master = 0;
        Ok(())
    }

    fn read_redo(&mut self) -> anyhow::Result<()> {
        let groups = self.stored.read(&self.fleet.master.database())?;
        // What is in it was sent before: the witness knows of it by now.
        self.stored.take(groups, &self.fleet.relay.witness());
        Ok(())
    }

    /// Lets everything be delivered and ends the slaves; whether nothing is left to deliver.
    fn settle(&mut self) -> anyhow::Result<bool> {
        self.fleet.start_all()?;
        let deadline = clock::boot() + SETTLE_MAX;
        let mut left = self.fleet.all_slaves();
        while !left.is_empty() {
            if !self.wait_for_acks(deadline)? {
                return Ok(false);
            }
            self.fleet.end_slaves(Blow::Planned, &left)?;
            for at in std::mem::take(&mut left) {
                if !self.look_at_spool(at)? {
                    left.push(at);
                }
            }
            self.fleet.start_slaves(&left)?;
        }
        Ok(true)
    }

    /// Waits until all is acked that is known at the beginning; whether it is.
    fn wait_for_acks(&mut self, deadline: Moment) -> anyhow::Result<bool> {
        let ends = self.fleet.relay.witness().ends();
        let mut least = u64::MAX;
        let mut stuck_at = clock::boot() + STUCK_AFTER;
        loop {
            let owed = self.fleet.relay.witness().owed(&ends);
            let now = clock::boot();
            if owed == 0 {
                return Ok(true);
            }
            if owed < least {
                least = owed;
                stuck_at = now + STUCK_AFTER;
            }
            if now >= deadline.min(stuck_at) || self.pause(TURN) {
                return Ok(false);
            }
            self.read_redo()?;
            self.revive()?;
        }
    }

    /// Compares everything, with the master's own word last.
    fn conclude(
        &mut self,
        load: Duration,
        restarts: AllRestarts,
        settled: bool,
    ) -> anyhow::Result<Verdict> {
        self.fleet.look_for_deaths()?;
        let all = self.fleet.all_slaves();
        self.fleet.end_slaves(Blow::Killed, &all)?;
        for at in all {
            self.look_at_spool(at)?;
        }
        let rows = self.wait_for_rows()?;
        self.end_master(Blow::Planned)?;
        self.look_at_store()?;
        let history = History::read(&self.fleet.master.database())?;
        Ok(Verdict::new(&Findings {
            witness: &self.fleet.relay.witness(),
            stored: &self.stored,
            history: &history,
            rows: &rows,
            restarts,
            faults: &self.fleet.faults,
            seed: self.seed,
            slaves: self.args.slaves.into(),
            load,
            interrupted: self.interrupted,
            settled,
        }))
    }

    /// The roll, once it shows what is stored: what readers see is a moment old. If it never does,
    /// as it is in the end.
    fn wait_for_rows(&mut self) -> anyhow::Result<Vec<SlaveRow>> {
        let deadline = clock::boot() + ROLL_MAX;
        loop {
            self.read_redo()?;
            let rows = self.fleet.client.slaves().map(|list| list.slaves);
            let rows = rows.unwrap_or_default();
            let is_right = verdict::wrong_rows(&rows, &self.stored).is_empty();
            if is_right || clock::boot() >= deadline || self.pause(TURN) {
                return Ok(rows);
            }
        }
    }

    fn restarts(&self) -> AllRestarts {
        let count = |seats: &[Seat]| Restarts {
            killed: seats.iter().map(|seat| seat.killed).sum(),
            planned: seats.iter().map(|seat| seat.planned).sum(),
        };
        AllRestarts {
            master: count(std::slice::from_ref(&self.fleet.master)),
            slaves: count(&self.fleet.slaves),
        }
    }

    fn progress(&mut self, passed: Duration) -> anyhow::Result<()> {
        let (sent, acked) = {
            let witness = self.fleet.relay.witness();
            (witness.sent(), witness.acked())
        };
        let AllRestarts { master, slaves } = self.restarts();
        self.say(&format!(
            "{:<7} sent {}, acked {}, stored {}; ended: master {} times, slaves {} times",
            time::length(verdict::millis(passed)),
            grouped(sent),
            grouped(acked),
            grouped(self.stored.count()),
            master.killed + master.planned,
            slaves.killed + slaves.planned,
        ))
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        if !self.args.json {
            self.out.line(text)?;
        }
        Ok(())
    }

    /// Waits; whether a signal has come meanwhile.
    fn pause(&mut self, length: Duration) -> bool {
        // The thread that sends lives as long as the process.
        let has_come = !matches!(
            self.interrupts.recv_timeout(length),
            Err(RecvTimeoutError::Timeout)
        );
        self.interrupted |= has_come;
        has_come
    }
}
