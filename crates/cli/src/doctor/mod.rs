//! `rollcall doctor`: whether this host has what connections need, above all source ports.
//!
//! ```text
//!   root ──> settings ─┐
//!   sock_diag ──> traffic ─┴─> checks ──> findings ──> report
//! ```
//! `settings` and `traffic` only read; `checks` only judge what was read, so that each finding has a
//! test with a host made of a few files and sockets. Nothing is changed, and no root is needed; what
//! only root can see (whose a socket is) is left out otherwise.

mod args;
mod capacity;
mod checks;
mod finding;
mod report;
mod root;
mod settings;
mod sysctl_files;
mod traffic;

#[cfg(test)]
mod testing;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use anyhow::{Context, bail};
use rollcall_os::clock;
use rollcall_os::diag::destination::source_for;

pub(crate) use self::args::{DoctorArgs, HELP};
use self::checks::Case;
use self::finding::{Finding, Severity};
use self::report::{Detail, Report};
use self::root::Root;
use self::settings::{Counters, Settings};
use self::traffic::{ReuseRule, Traffic};
use crate::daemons;
use crate::terminal::frame::Frame;
use crate::terminal::json;
use crate::terminal::output::Output;

/// Looks at this host, once or again and again.
///
/// # Errors
/// If a finding of the last look is a warning or worse.
pub(crate) fn run(args: &DoctorArgs, out: &mut Output) -> anyhow::Result<()> {
    let mut doctor = Doctor {
        root: Root::host(),
        only: args.destination.as_deref().map(resolve).transpose()?,
        before: None,
    };
    let last = if args.watch {
        watch(&mut doctor, args, out)?
    } else {
        let report = doctor.look()?;
        show(&report, args, out)?;
        report
    };
    match last.complaint() {
        Some(complaint) => bail!("this host has {complaint}"),
        None => Ok(()),
    }
}

/// The addresses of a destination that was named.
fn resolve(destination: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let found = destination.to_socket_addrs();
    let found = found.with_context(|| {
        format!(
            "can't resolve {destination:?}: write it as HOST:PORT, for example master.example:7412"
        )
    })?;
    Ok(found.collect())
}

struct Doctor {
    root: Root,
    /// The destinations that were asked for; all if none was.
    only: Option<Vec<SocketAddr>>,
    /// The counters at the last look.
    before: Option<Counters>,
}

impl Doctor {
    fn look(&mut self) -> anyhow::Result<Report> {
        let settings = Settings::read(&self.root)?;
        let reuse = ReuseRule {
            on_loopback: settings.reuses(true),
            elsewhere: settings.reuses(false),
            delay_ms: settings.reuse_delay_ms(),
        };
        let listed = Traffic::read(&settings.ports, reuse);
        let failed = listed.as_ref().err().map(not_listed);
        let mut traffic = listed.unwrap_or_default();
        if let Some(only) = &self.only {
            keep(only, &settings, &mut traffic);
        }
        let mut findings = checks::all(Case {
            settings: &settings,
            traffic: &traffic,
            before: self.before.replace(settings.counters),
            is_asked: self.only.is_some(),
        });
        findings.extend(failed);
        finding::sort(&mut findings);
        Ok(Report::new(&settings, &traffic, findings))
    }
}

fn not_listed(error: &std::io::Error) -> Finding {
    Finding::new(
        "sockets",
        Severity::Warning,
        format!("the kernel does not list its sockets: {error}"),
        "So nothing is known of destinations, listeners and owners: sock_diag is missing, or a sandbox forbids \
         netlink.",
    )
    .mend("modprobe tcp_diag")
}

/// Leaves only these destinations, also those to which nobody is connected.
fn keep(only: &[SocketAddr], settings: &Settings, traffic: &mut Traffic) {
    traffic
        .destinations
        .retain(|one| only.contains(&one.remote));
    for destination in only {
        let is_there = traffic
            .destinations
            .iter()
            .any(|one| one.remote == *destination);
        if let Some(source) = source_for(*destination).filter(|_| !is_there) {
            let usable = usize::try_from(settings.ports.usable()).unwrap_or(usize::MAX);
            let unused = traffic::empty(*destination, source, usable);
            traffic.destinations.push(unused);
        }
    }
}

fn show(report: &Report, args: &DoctorArgs, out: &mut Output) -> anyhow::Result<()> {
    if args.json {
        let text = match args.watch {
            true => json::line(report)?,
            false => json::pretty(report)?,
        };
        out.line(&text)?;
        return Ok(());
    }
    for line in report.lines(Detail::Full, out.look()) {
        out.line(&line)?;
    }
    if args.watch {
        out.line("")?;
    }
    Ok(())
}

/// Looks until a signal comes or the time is over, and returns the last look.
fn watch(doctor: &mut Doctor, args: &DoctorArgs, out: &mut Output) -> anyhow::Result<Report> {
    let (tell, stop) = mpsc::channel();
    daemons::on_stop_signal(move |name| tell.send(name).is_ok())
        .context("can't listen to signals")?;
    let end = args.duration.map(|duration| clock::boot() + duration.get());
    let mut frame = Frame::default();
    loop {
        let report = doctor.look()?;
        if out.is_terminal() && !args.json {
            frame.draw(report.lines(Detail::Brief, out.look()), out)?;
        } else {
            show(&report, args, out)?;
        }
        if is_over(args, end, &stop) {
            return Ok(report);
        }
    }
}

/// Waits for the next look; whether there is to be none.
fn is_over(
    args: &DoctorArgs,
    end: Option<rollcall_protocol::Moment>,
    stop: &Receiver<&'static str>,
) -> bool {
    let left = end.map(|end| end.saturating_since(clock::boot()));
    let every = args.every.get();
    let pause = left.map_or(every, |left| left.min(every));
    let was_stopped = stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
    was_stopped || left.is_some_and(|left| left <= every)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::{Fixture, HOST};

    #[test]
    fn a_destination_without_connections_is_told_when_it_is_asked_for() {
        let settings = Fixture::new(HOST).settings();
        let mut traffic = Traffic {
            destinations: vec![traffic::empty(
                "10.0.0.9:80".parse().unwrap(),
                [10, 0, 0, 1].into(),
                7,
            )],
            ..Traffic::default()
        };
        keep(
            &["127.0.0.1:7412".parse().unwrap()],
            &settings,
            &mut traffic,
        );
        let [only] = traffic.destinations.as_slice() else {
            panic!("{:#?}", traffic.destinations);
        };
        assert_eq!(only.remote.to_string(), "127.0.0.1:7412");
        assert_eq!((only.source.is_loopback(), only.left), (true, 28_229));
    }

    #[test]
    fn a_destination_is_a_host_and_a_port() {
        assert_eq!(resolve("127.0.0.1:80").unwrap().len(), 1);
        let error = resolve("127.0.0.1").unwrap_err().to_string();
        assert!(error.contains("HOST:PORT"), "{error}");
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let mut doctor = Doctor {
            root: Root::host(),
            only: None,
            before: None,
        };
        let report = doctor.look().unwrap();
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.id == "port_range")
        );
        assert!(
            !report
                .findings
                .iter()
                .any(|finding| finding.id == "sockets")
        );
        assert!(doctor.before.is_some());
    }
}
