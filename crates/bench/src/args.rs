//! The command line: as it is written, and what it comes to.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rollcall_os::units;
use rollcall_protocol::backoff::BackoffLimits;
use rollcall_protocol::datagram::ResendLimits;
use rollcall_protocol::limits::{INTERVAL_MAX, INTERVAL_MIN, WINDOW_MAX};
use rollcall_protocol::wire;

use crate::baseline;
use crate::load::{Bound, Close, Fleet, Plan, Replay};

/// The first pause before a reconnect is drawn from zero to this.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// When a question is sent again: as a slave does that is not told otherwise.
const RESEND: ResendLimits = ResendLimits {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(4),
};
/// A session that has stayed up for this long has pauses start small again.
const RETRY_RESET_AFTER: Duration = Duration::from_secs(2);

/// Simulates a fleet of slaves against a master and measures it.
///
/// Ends with 0 only if every report was acked and the master refused nothing. SIGINT or SIGTERM has it
/// make no more reports, wait for the acks that are owed, and print the result; another one ends it.
#[derive(Debug, Parser)]
#[command(
    name = "rollcall-bench",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Cli {
    /// What the executable does for itself.
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
    /// What it does for people.
    #[command(flatten)]
    pub(crate) run: Option<Run>,
}

/// Roles of child processes.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// A bare server to compare with, until standard input ends.
    #[command(hide = true)]
    BaselineServer {
        /// Which one.
        kind: baseline::Kind,
        /// Where its log goes.
        #[arg(long)]
        log_directory: PathBuf,
        /// Where it listens.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

/// How the simulated slaves use connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// One long-lived connection each.
    Pooled,
    /// Connect, send, ack, close; again for each report.
    PerMessage,
    /// Every other slave per-message.
    Mixed,
    /// No connection: what a slave owes goes over UDP in one datagram, and again after 250 ms, 500 ms
    /// and so on up to 4 s, until its answer comes. The master must offer it (listen.datagram). It
    /// drops unread what is more than its limits.datagram_rate allows of one address: behind one,
    /// slaves without --rate get that rate together, and late. Raise the limit, or spread them over
    /// --source-addresses; 127.0.0.0/8 is full of them.
    Datagram,
    /// Pooled, one report each, then silence for --duration: memory per idle connection.
    Idle,
}

/// A run, as the command line says it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// Where the master listens, for example 127.0.0.1:7412.
    #[arg(long, value_name = "ADDR")]
    pub(crate) master: String,
    /// Number of slaves to simulate.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) slaves: u32,
    /// How they use connections.
    #[arg(long, value_enum, default_value = "pooled")]
    pub(crate) mode: Mode,
    /// Unacked reports per pooled connection; the master's window caps it.
    #[arg(long, value_name = "K", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_MAX)))]
    pub(crate) in_flight: u32,
    /// Reports per slave and second, phases spread; without it as fast as acks allow.
    #[arg(long, value_name = "PER_SLAVE_PER_S", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// How long reports are made, for example 10s [default: 10s unless --count is given].
    #[arg(long, value_name = "TIME", conflicts_with = "count")]
    pub(crate) duration: Option<units::Duration>,
    /// How many reports are made, by all slaves together.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Bytes of a report's whole frame, met exactly.
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    pub(crate) payload_bytes: usize,
    /// Each of --slaves begins with a backlog of N reports and replays it, as after an outage: the
    /// newest first as a preview, then all in order. Without --duration the run ends with it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1_000_000_000),
          conflicts_with_all = ["count", "baseline"])]
    pub(crate) replay: Option<u64>,
    /// Further slaves, which report live at --rate while the others replay.
    #[arg(long, value_name = "M", default_value_t = 0, requires = "replay")]
    pub(crate) live_slaves: u32,
    /// Local addresses that the slaves bind in turn, separated by commas.
    #[arg(long, value_name = "IP,…", value_delimiter = ',')]
    pub(crate) source_addresses: Vec<IpAddr>,
    /// The master's process, for its CPU time and memory.
    #[arg(long, value_name = "PID")]
    pub(crate) master_pid: Option<u32>,
    /// Then do the same against two bare servers, and compare.
    #[arg(long)]
    pub(crate) baseline: bool,
    /// How a per-message connection ends once its report is acked.
    #[arg(long, value_enum, default_value = "master-first")]
    pub(crate) close: Close,
    /// Then send as much, by as many at a time, in a bare loop of connect, send, receive, close, and
    /// compare: what per-message mode costs beyond its connections.
    #[arg(long)]
    pub(crate) connect_loop: bool,
    /// The same against a server that runs there already: `rollcall-bench baseline-server
    /// connect-loop --log-directory /tmp --listen ADDR`, for example in another network namespace.
    #[arg(long, value_name = "ADDR")]
    pub(crate) connect_loop_server: Option<SocketAddr>,
    /// Where the bare server with a log keeps it: best on the file system of the master's state.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub(crate) baseline_directory: PathBuf,
    /// How long an answer may take before the slave reconnects, or gives its question up and asks
    /// another.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: units::Duration,
    /// How long to go on with no ack at all, or with no connection at the start.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) patience: units::Duration,
    /// The longest pause before a reconnect, and more by half, where the master says nothing of its own.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) retry_longest: units::Duration,
    /// Write a line of JSON per slave to this file at the end: what was made and what was acked.
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: Option<PathBuf>,
    /// End with 0 even if the master refused something, as long as every report was acked.
    #[arg(long)]
    pub(crate) allow_errors: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1e-5..=1e6).contains(&rate) => Ok(rate),
        _ => Err("a number of reports per second from 0.00001 to 1000000".to_owned()),
    }
}

impl Run {
    /// What to simulate against the master.
    ///
    /// # Errors
    /// If the master's name can't be resolved or options contradict each other.
    pub(crate) fn plan(&self) -> anyhow::Result<Plan> {
        let master = resolve(&self.master)?;
        let fits = |source: &IpAddr| source.is_ipv4() == master.is_ipv4();
        ensure!(
            self.source_addresses.iter().all(fits),
            "--source-addresses and --master must both be IPv4 or both IPv6"
        );
        ensure!(
            self.mode != Mode::Idle || (self.rate.is_none() && self.count.is_none()),
            "--mode idle takes no --rate and no --count: each slave sends one report"
        );
        ensure!(
            self.mode == Mode::Pooled || self.replay.is_none(),
            "--replay is for --mode pooled"
        );
        ensure!(
            self.mode != Mode::Datagram || !self.baseline,
            "--baseline is not for --mode datagram: the bare servers take connections only"
        );
        ensure!(
            self.mode == Mode::PerMessage || !self.compares_with_loop(),
            "--connect-loop is for --mode per-message"
        );
        let duration = self
            .duration
            .map_or(Duration::from_secs(10), units::Duration::get);
        let idle = self.mode == Mode::Idle;
        let bound = match self.count {
            Some(count) => Bound::Count(count),
            None if idle => Bound::Count(self.slaves.into()),
            None if self.replay.is_some() && self.duration.is_none() => Bound::Replay,
            None => Bound::Duration(duration),
        };
        Ok(Plan {
            master,
            sources: self.source_addresses.clone(),
            close: self.close,
            modes: (0..self.connections())
                .map(|index| self.mode_of(index))
                .collect(),
            replay: self.replay.map(|backlog| Replay {
                slaves: usize::try_from(self.slaves).unwrap_or(usize::MAX),
                backlog,
            }),
            fleet: Fleet {
                run: format!("{:06x}", fastrand::u32(..1 << 24)),
                interval_ms: self.interval_ms(),
                backoff: BackoffLimits {
                    base: RETRY_FIRST.min(self.retry_longest.get()),
                    cap: self.retry_longest.get(),
                    reset_after: RETRY_RESET_AFTER,
                },
            },
            in_flight: if idle { 1 } else { self.in_flight },
            rate: self.rate,
            bound,
            hold: if idle { duration } else { Duration::ZERO },
            payload_bytes: self.payload_bytes,
            timeout: self.timeout.get(),
            resend: RESEND,
            patience: self.patience.get(),
        })
    }

    /// Whether a bare loop of connections is to be compared with.
    pub(crate) fn compares_with_loop(&self) -> bool {
        self.connect_loop || self.connect_loop_server.is_some()
    }

    /// Slaves of both kinds.
    pub(crate) fn connections(&self) -> u32 {
        self.slaves.saturating_add(self.live_slaves)
    }

    fn mode_of(&self, index: u32) -> wire::Mode {
        match self.mode {
            Mode::PerMessage => wire::Mode::PerMessage,
            Mode::Datagram => wire::Mode::Datagram,
            Mode::Mixed if index % 2 == 1 => wire::Mode::PerMessage,
            Mode::Pooled | Mode::Mixed | Mode::Idle => wire::Mode::Pooled,
        }
    }

    /// The interval that the slaves announce: that of the rate, a second in a closed loop, and a
    /// day for slaves that stay silent on purpose.
    fn interval_ms(&self) -> u32 {
        let interval = match (self.mode, self.rate) {
            (Mode::Idle, _) => INTERVAL_MAX,
            (_, Some(rate)) => Duration::try_from_secs_f64(1.0 / rate).unwrap_or(INTERVAL_MAX),
            (_, None) => Duration::from_secs(1),
        };
        let interval = interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
        u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)
    }
}

fn resolve(master: &str) -> anyhow::Result<SocketAddr> {
    let found = master.to_socket_addrs();
    let mut found =
        found.with_context(|| format!("--master {master}: not HOST:PORT, or an unknown host"))?;
    found
        .next()
        .with_context(|| format!("--master {master}: no address found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<Run, clap::Error> {
        let fixed = [
            "rollcall-bench",
            "--master",
            "127.0.0.1:7412",
            "--slaves",
            "4",
        ];
        let cli = Cli::try_parse_from(fixed.iter().chain(args))?;
        Ok(cli.run.unwrap())
    }

    fn plan(args: &[&str]) -> anyhow::Result<Plan> {
        run(args)?.plan()
    }

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_not_said_is_as_documented() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.bound, Bound::Duration(Duration::from_secs(10)));
        assert_eq!(plan.payload_bytes, 200);
        assert_eq!(plan.in_flight, 1);
        assert_eq!(plan.fleet.interval_ms, 1000);
        assert_eq!(plan.modes, [wire::Mode::Pooled; 4]);
    }

    #[test]
    fn the_interval_announced_is_that_of_the_rate_within_the_limits() {
        let interval = |rate| plan(&["--rate", rate]).unwrap().fleet.interval_ms;
        assert_eq!(interval("10"), 100);
        assert_eq!(interval("0.1"), 10_000);
        assert_eq!(interval("1000"), 10);
        assert_eq!(interval("0.00001"), 86_400_000);
        assert!(run(&["--rate", "0"]).is_err());
        assert!(run(&["--rate", "nan"]).is_err());
    }

    #[test]
    fn mixed_means_every_other_slave() {
        use wire::Mode::{PerMessage, Pooled};
        let plan = plan(&["--mode", "mixed"]).unwrap();
        assert_eq!(plan.modes, [Pooled, PerMessage, Pooled, PerMessage]);
    }

    #[test]
    fn questions_are_sent_again_as_a_slave_does_by_default() {
        let text = include_str!("../../../config/slave.toml");
        for (key, pause) in [
            ("resend_first", RESEND.first),
            ("resend_longest", RESEND.longest),
        ] {
            let line = format!("\n{key} = \"{}\"\n", units::Duration::new(pause));
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn idle_is_one_report_each_and_then_silence() {
        let idle = plan(&["--mode", "idle", "--duration", "3s"]).unwrap();
        assert_eq!(idle.bound, Bound::Count(4));
        assert_eq!(idle.hold, Duration::from_secs(3));
        assert!(plan(&["--mode", "idle", "--rate", "1"]).is_err());
    }

    #[test]
    fn a_replay_ends_with_the_backlog_unless_a_time_is_given() {
        let replay = plan(&["--replay", "9", "--live-slaves", "2", "--rate", "5"]).unwrap();
        assert_eq!(replay.bound, Bound::Replay);
        assert_eq!(replay.modes.len(), 6);
        let timed = plan(&["--replay", "9", "--duration", "3s"]).unwrap();
        assert_eq!(timed.bound, Bound::Duration(Duration::from_secs(3)));
        assert!(plan(&["--replay", "9", "--mode", "mixed"]).is_err());
        assert!(run(&["--replay", "9", "--baseline"]).is_err());
        assert!(run(&["--live-slaves", "2"]).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(run(&["--duration", "1s", "--count", "5"]).is_err());
        assert!(run(&["--in-flight", "0"]).is_err());
        assert!(run(&["--in-flight", "5000"]).is_err());
        assert!(plan(&["--source-addresses", "::1"]).is_err());
        assert!(plan(&["--connect-loop"]).is_err());
        assert!(plan(&["--mode", "datagram", "--baseline"]).is_err());
        assert!(plan(&["--connect-loop", "--mode", "per-message"]).is_ok());
        let sources = ["--source-addresses", "127.0.0.1,127.0.0.2"];
        assert_eq!(plan(&sources).unwrap().sources.len(), 2);
    }
}
