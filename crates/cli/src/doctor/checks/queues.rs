//! Listeners and the connections that wait for them, and programs that don't close.

use super::{Case, grown};
use crate::doctor::finding::{Finding, Severity, counted, set};
use crate::doctor::settings::{Counters, Settings};
use crate::doctor::traffic::{Listener, User};

const SOMAXCONN: &str = "net.core.somaxconn";
const SYN_BACKLOG: &str = "net.ipv4.tcp_max_syn_backlog";
/// What rollcall-master asks for, and the kernel's default since Linux 5.4.
const QUEUE: u32 = 4096;
/// The kernel's default before.
const QUEUE_SHORT: u32 = 128;
const SYN_FEW: u32 = 256;
const SYN_FEW_WITHOUT_COOKIES: u32 = 1024;
/// Percent of a listener's queue.
const NEARLY_FULL: u32 = 75;
/// Sockets in CLOSE_WAIT of one process.
const LEAK: usize = 100;
const LEAK_MAYBE: usize = 10;

pub(super) fn check(case: Case<'_>) -> Vec<Finding> {
    let listeners = case.traffic.listeners.iter();
    let full = listeners.filter_map(|one| queue(one, case.settings));
    let leaks = case.traffic.users.iter().filter_map(leak);
    let rest = [
        somaxconn(case.settings),
        syn_backlog(case.settings),
        overflows(case),
        drops(case),
    ];
    full.chain(leaks)
        .chain(rest.into_iter().flatten())
        .collect()
}

fn queue(listener: &Listener, settings: &Settings) -> Option<Finding> {
    let Listener {
        address,
        queue,
        limit,
        owner,
    } = listener;
    let percent = u64::from(*queue) * 100 / u64::from((*limit).max(1));
    let (severity, means) = match percent {
        100.. => (
            Severity::Critical,
            "It is full: new clients wait 1 s, 2 s, 4 s and so on for their next try. The program accepts too \
             slowly, or not at all.",
        ),
        _ if percent >= u64::from(NEARLY_FULL) => (
            Severity::Warning,
            "It is nearly full; then new clients wait 1 s, 2 s, 4 s and so on for their next try.",
        ),
        _ => return None,
    };
    let what =
        format!("{queue} of {limit} connections wait to be accepted on {address} by {owner}");
    let finding = Finding::new("listen_queue", severity, what, means);
    // A program that asked for more than that gets a longer queue at its next start.
    Some(match settings.somaxconn {
        Some(max) if max == *limit && max < QUEUE => finding.mend(set(SOMAXCONN, QUEUE)),
        _ => finding,
    })
}

fn leak(user: &User) -> Option<Finding> {
    let severity = match user.close_wait {
        LEAK.. => Severity::Warning,
        LEAK_MAYBE.. => Severity::Notice,
        _ => return None,
    };
    let what = format!(
        "{} connections in CLOSE_WAIT in {}",
        user.close_wait, user.owner
    );
    let means = "Their peers have closed them and the program has not: as a rule it forgets to, and will run out \
                 of files or ports.";
    let finding = Finding::new("close_wait", severity, what, means);
    // Sessions and the managers of users are units as well, with much more in them.
    let service = user.unit.as_deref().filter(|unit| {
        let name = unit.strip_suffix(".service");
        name.is_some_and(|name| !name.starts_with("user@"))
    });
    Some(match service {
        Some(unit) => finding.mend(format!("systemctl restart {unit}")),
        None => finding,
    })
}

fn somaxconn(settings: &Settings) -> Option<Finding> {
    let value = settings.somaxconn?;
    let severity = match value {
        _ if value <= QUEUE_SHORT => Severity::Warning,
        _ if value < QUEUE => Severity::Notice,
        _ => Severity::Ok,
    };
    Some(
        Finding::new(
            "somaxconn",
            severity,
            format!("{SOMAXCONN} = {value}"),
            "No listener has a longer queue, whatever it asks for; when a thousand clients come back at once a \
             short one makes most of them wait 1 to 7 s.",
        )
        .mend(set(SOMAXCONN, QUEUE)),
    )
}

fn syn_backlog(settings: &Settings) -> Option<Finding> {
    let value = settings.syn_backlog?;
    let without_cookies = settings.syncookies == Some(0);
    let severity = match value {
        _ if without_cookies && value < SYN_FEW_WITHOUT_COOKIES => Severity::Warning,
        _ if value < SYN_FEW => Severity::Notice,
        _ => Severity::Ok,
    };
    let cookies = if without_cookies { "off" } else { "on" };
    Some(
        Finding::new(
            "syn_backlog",
            severity,
            format!("{SYN_BACKLOG} = {value}, with SYN cookies {cookies}"),
            "So many clients may be in the middle of connecting to one listener; beyond that SYN cookies help, and \
             without them clients are dropped.",
        )
        .mend(set(SYN_BACKLOG, QUEUE)),
    )
}

fn overflows(case: Case<'_>) -> Option<Finding> {
    let now = case.settings.counters.listen_overflows;
    let before = case.before.map(|before| before.listen_overflows);
    let (severity, what) = match grown(now, before) {
        Some(more) => (
            Severity::Warning,
            format!(
                "{} just found a listener's queue full, {now} in all",
                counted(more, "connection")
            ),
        ),
        None if now > 0 => (
            Severity::Notice,
            format!(
                "{} found a listener's queue full since the counting began",
                counted(now, "connection")
            ),
        ),
        None => (
            Severity::Ok,
            "no connection found a listener's queue full".to_owned(),
        ),
    };
    let finding = Finding::new(
        "listen_overflows",
        severity,
        what,
        "Counted since the boot (ListenOverflows): a queue is too short for a burst, or a program too slow; \
         `rollcall doctor --watch` tells when it happens, and where.",
    );
    Some(match case.settings.somaxconn {
        Some(max) if max < QUEUE => finding.mend(set(SOMAXCONN, QUEUE)),
        _ => finding,
    })
}

fn drops(case: Case<'_>) -> Option<Finding> {
    let other = |counters: Counters| {
        counters
            .listen_drops
            .saturating_sub(counters.listen_overflows)
    };
    let now = other(case.settings.counters);
    let (severity, what) = match grown(now, case.before.map(other)) {
        Some(more) => (
            Severity::Warning,
            format!(
                "{} just dropped by listeners for other reasons than a full queue, {now} in all",
                counted(more, "connection")
            ),
        ),
        None if now > 0 => (
            Severity::Notice,
            format!(
                "{} dropped by listeners for other reasons than a full queue",
                counted(now, "connection")
            ),
        ),
        None => return None,
    };
    Some(Finding::new(
        "listen_drops",
        severity,
        what,
        "Counted since the boot (ListenDrops): no memory, a listener that was closed, or more clients in the middle \
         of connecting than it takes.",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{find, severity};
    use super::*;
    use crate::doctor::testing::{Fixture, HOST};
    use crate::doctor::traffic::Traffic;

    fn listener(queue: u32, limit: u32) -> Traffic {
        Traffic {
            listeners: vec![Listener {
                address: "0.0.0.0:80".parse().unwrap(),
                queue,
                limit,
                owner: "app (pid 7)".to_owned(),
            }],
            ..Traffic::default()
        }
    }

    #[test]
    fn a_full_queue_is_critical() {
        let at = |queue| find("listen_queue", &[], &listener(queue, 100)).pop();
        assert_eq!(at(74), None);
        assert_eq!(at(75).unwrap().severity, Severity::Warning);
        assert_eq!(at(101).unwrap().severity, Severity::Critical);
        // A longer one can only be had where the system is what bounds it.
        assert_eq!(at(101).unwrap().mend, None);
        let files = [("proc/sys/net/core/somaxconn", "128")];
        let found = find("listen_queue", &files, &listener(128, 128));
        assert_eq!(
            found[0].mend.as_deref(),
            Some("sysctl -w net.core.somaxconn=4096")
        );
    }

    #[test]
    fn short_queues_are_told() {
        let with = |value| severity("somaxconn", &[("proc/sys/net/core/somaxconn", value)]);
        assert_eq!(with("128"), Severity::Warning);
        assert_eq!(with("1024"), Severity::Notice);
        assert_eq!(with("4096"), Severity::Ok);
        let backlog = ("proc/sys/net/ipv4/tcp_max_syn_backlog", "512");
        let cookies = ("proc/sys/net/ipv4/tcp_syncookies", "0");
        assert_eq!(severity("syn_backlog", &[backlog]), Severity::Ok);
        assert_eq!(
            severity("syn_backlog", &[backlog, cookies]),
            Severity::Warning
        );
        let few = ("proc/sys/net/ipv4/tcp_max_syn_backlog", "128");
        assert_eq!(severity("syn_backlog", &[few]), Severity::Notice);
    }

    #[test]
    fn a_program_that_does_not_close_is_named() {
        let with = |close_wait, unit: &str| {
            let traffic = Traffic {
                users: vec![User {
                    owner: "app (pid 7)".to_owned(),
                    pid: Some(7),
                    unit: Some(unit.to_owned()),
                    sockets: 200,
                    close_wait,
                }],
                ..Traffic::default()
            };
            find("close_wait", &[], &traffic).pop()
        };
        assert_eq!(with(9, "app.service"), None);
        assert_eq!(with(10, "app.service").unwrap().severity, Severity::Notice);
        let found = with(100, "app.service").unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.what.contains("app (pid 7)"), "{}", found.what);
        assert_eq!(found.mend.as_deref(), Some("systemctl restart app.service"));
        for unit in ["session-3.scope", "user@1000.service"] {
            assert_eq!(with(100, unit).unwrap().mend, None);
        }
    }

    #[test]
    fn overflows_are_worse_while_they_happen() {
        let text = "TcpExt: ListenOverflows ListenDrops\nTcpExt: 3 10\n";
        let file = ("proc/net/netstat", text);
        assert_eq!(severity("listen_overflows", &[]), Severity::Ok);
        assert_eq!(severity("listen_overflows", &[file]), Severity::Notice);
        assert_eq!(severity("listen_drops", &[file]), Severity::Notice);
        let settings = Fixture::new(HOST).with(file.0, file.1).settings();
        let mut before = settings.counters;
        before.listen_overflows = 1;
        before.listen_drops = 1;
        let case = Case {
            settings: &settings,
            traffic: &Traffic::default(),
            before: Some(before),
            is_asked: false,
        };
        let texts = [overflows(case), drops(case)].map(Option::unwrap);
        assert!(
            texts
                .iter()
                .all(|finding| finding.severity == Severity::Warning)
        );
        assert!(
            texts[0].what.starts_with("2 connections"),
            "{}",
            texts[0].what
        );
        assert!(
            texts[1].what.starts_with("7 connections"),
            "{}",
            texts[1].what
        );
    }
}
