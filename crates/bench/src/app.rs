//! A whole run: against the master, then against the bare servers, then the result.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::Mode;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::args::{self, Cli, Role, Run};
use crate::baseline::{self, Kind};
use crate::connect_loop::{self, LoopReport};
use crate::load::{self, Fleet, Observer, Outcome, Plan, Slave, Tally};
use crate::ports::Connects;
use crate::ratio::{rate_per_s, ratio};
use crate::report::{BaselineReport, Baselines, Report, RunReport, Samples};
use crate::{descriptors, process};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(1);

/// Does what the command line says.
///
/// # Errors
/// If it can't be done, or if the run was not a good one: its result is printed first.
pub(crate) fn run(cli: &Cli) -> anyhow::Result<()> {
    match (&cli.role, &cli.run) {
        (
            Some(Role::BaselineServer {
                kind,
                log_directory,
                listen,
            }),
            _,
        ) => baseline::serve(*kind, log_directory, *listen),
        (None, Some(run)) => measure(run),
        (None, None) => bail!("--master and --slaves are needed"),
    }
}

fn measure(run: &Run) -> anyhow::Result<()> {
    let plan = run.plan()?;
    descriptors::provide_for(run.connections())?;
    warn(run, &plan);
    let stop = stop_flag().context("can't handle signals")?;
    let (outcome, report) = against(&plan, run, run.master_pid, "master", &stop)?;
    if let Some(path) = &run.ledger {
        write_ledger(path, &plan.fleet, &outcome.slaves)
            .with_context(|| format!("can't write the ledger {}", path.display()))?;
    }
    let connect_loop = comparison(run.compares_with_loop(), &stop, || {
        let bare = connect_loop::run(&plan, run.connect_loop_server, &stop)?;
        let ratio = ratio(report.rate_per_s, bare.rate_per_s);
        Ok(LoopReport { ratio, ..bare })
    })?;
    let baseline = comparison(run.baseline, &stop, || {
        baselines(&plan, run, &report, &stop)
    })?;
    let report = Report {
        mode: run.mode,
        slaves: run.slaves,
        in_flight: plan.in_flight,
        payload_bytes: run.payload_bytes,
        rate: run.rate,
        replay: run.replay,
        live_slaves: run.replay.map(|_| run.live_slaves),
        run: report,
        connect_loop,
        baseline,
    };
    let text = if run.json {
        serde_json::to_string_pretty(&report)?
    } else {
        report.table()
    };
    writeln!(std::io::stdout(), "{text}").context("can't print the result")?;
    match report.run.fault(run.allow_errors) {
        None => Ok(()),
        Some(fault) => match outcome.tally.first_text {
            Some(text) => bail!("{fault}: {text}"),
            None => bail!("{fault}"),
        },
    }
}

/// Measures what the master is compared with, if that is wanted. Who stops the run wants its result
/// and nothing more: what was broken off compares with nothing.
fn comparison<T>(
    wanted: bool,
    stop: &AtomicBool,
    measure: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let is_stopped = || stop.load(Ordering::Relaxed);
    if !wanted || is_stopped() {
        return Ok(None);
    }
    let measured = measure();
    if is_stopped() {
        return Ok(None);
    }
    measured.map(Some)
}

fn warn(run: &Run, plan: &Plan) {
    if !plan.master.ip().is_loopback() {
        eprintln!(
            "warning: {} is not a loopback address: load only a master and a network that are yours",
            plan.master
        );
    }
    if run.baseline && is_in_memory(&run.baseline_directory) {
        eprintln!(
            "warning: {} is in memory, where a sync costs nothing: give --baseline-directory",
            run.baseline_directory.display()
        );
    }
}

/// Whether the file system keeps its files in memory (tmpfs(5), ramfs).
fn is_in_memory(directory: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    rustix::fs::statfs(directory).is_ok_and(|file_system| {
        u64::try_from(file_system.f_type)
            .is_ok_and(|kind| kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
    })
}

/// Set by SIGINT or SIGTERM. Another one ends the process, as if nobody had listened.
fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset.
        flag::register_conditional_default(signal, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn baselines(
    plan: &Plan,
    run: &Run,
    master: &RunReport,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Baselines> {
    let measure = |kind, label| -> anyhow::Result<BaselineReport> {
        let server = baseline::Server::start(kind, &run.baseline_directory)?;
        let sources = plan
            .sources
            .iter()
            .copied()
            .filter(|source| source.is_loopback());
        let plan = Plan {
            master: server.address(),
            sources: sources.filter(std::net::IpAddr::is_ipv4).collect(),
            ..plan.clone()
        };
        let (_, run) = against(&plan, run, Some(server.pid()), label, stop)?;
        let ratio = run.ratio_of(master);
        Ok(BaselineReport { run, ratio })
    };
    Ok(Baselines {
        echo: measure(Kind::Echo, "bare echo")?,
        group_commit: measure(Kind::GroupCommit, "bare group commit")?,
    })
}

fn against(
    plan: &Plan,
    run: &Run,
    pid: Option<u32>,
    label: &'static str,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(Outcome, RunReport)> {
    let mut watch = Watch::new(plan.master, pid, label, Arc::clone(stop));
    let outcome = load::run(plan, &mut watch)?;
    watch.end();
    let pooled = plan
        .modes
        .iter()
        .filter(|mode| **mode == Mode::Pooled)
        .count();
    let connections = u32::try_from(pooled).unwrap_or(u32::MAX);
    let idle = run.mode == args::Mode::Idle;
    let ports = watch.connects.report();
    let report = RunReport::new(
        &outcome,
        ports,
        &watch.server,
        &watch.client,
        connections,
        idle,
    );
    Ok((outcome, report))
}

/// Takes the samples, and shows progress on a terminal.
struct Watch {
    pid: Option<u32>,
    server: Samples,
    client: Samples,
    connects: Connects,
    label: &'static str,
    stop: Arc<AtomicBool>,
    shows: bool,
    next: Moment,
    acked: u64,
}

impl Watch {
    fn new(
        server: SocketAddr,
        pid: Option<u32>,
        label: &'static str,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let before = |pid: Option<u32>| Samples {
            before: pid.and_then(process::usage),
            ..Samples::default()
        };
        Self {
            pid,
            server: before(pid),
            client: before(Some(std::process::id())),
            connects: Connects::to(server, clock::boot()),
            label,
            stop,
            shows: std::io::stderr().is_terminal(),
            next: clock::boot() + PROGRESS,
            acked: 0,
        }
    }

    /// Clears the line of progress.
    fn end(&self) {
        if self.shows {
            eprint!("\r\x1b[K");
        }
    }
}

impl Observer for Watch {
    fn opened(&mut self) {
        self.server.opened = self.pid.and_then(process::usage);
        self.client.opened = process::usage(std::process::id());
    }

    fn progress(&mut self, elapsed: Duration, tally: &Tally) {
        let now = clock::boot();
        self.connects.set(tally.connects, &tally.connects_failed);
        self.connects.look(now);
        if !self.shows {
            return;
        }
        if now < self.next {
            return;
        }
        let span = now.saturating_since(self.next) + PROGRESS;
        let rate = rate_per_s(tally.acked - self.acked, span);
        let errors: u64 = tally.errors.values().sum();
        eprint!(
            "\r\x1b[K{}: {:.0} s, {} connected, {} acked, {rate:.0}/s, {} owed, {errors} errors",
            self.label,
            elapsed.as_secs_f64(),
            tally.welcomed,
            tally.acked,
            tally.owed(),
        );
        self.next = now + PROGRESS;
        self.acked = tally.acked;
    }

    fn finished(&mut self) {
        self.server.finished = self.pid.and_then(process::usage);
        self.client.finished = process::usage(std::process::id());
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A line of the ledger: what a test compares with the roll.
#[derive(Debug, Serialize)]
struct LedgerLine {
    name: String,
    /// 32 hexadecimal digits.
    id: String,
    /// The newest stream: 16 hexadecimal digits.
    stream: String,
    /// Reports made, over all streams.
    sent: u64,
    /// Highest acked sequence of the newest stream.
    acked: u64,
    /// Over all streams, each report once.
    distinct_reports_acked: u64,
}

fn write_ledger(path: &Path, fleet: &Fleet, slaves: &[Slave]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for slave in slaves {
        let (sent, distinct_reports_acked) = slave.totals();
        let line = LedgerLine {
            name: slave.name(fleet),
            id: format!("{:032x}", u128::from_be_bytes(*slave.id())),
            stream: format!("{:016x}", slave.stream()),
            sent,
            acked: slave.acked(),
            distinct_reports_acked,
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}
