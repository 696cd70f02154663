//! Traffic and errors of each network interface.

use std::collections::HashMap;
use std::time::Duration;

use bytesize::ByteSize;
use procfs_core::FromBufRead;
use procfs_core::net::{DeviceStatus, InterfaceDeviceStatus};

use super::ProbeError;
use crate::check::finding::{Finding, metric};
use crate::config::probe::Network;

/// The counters of all interfaces, by name.
pub(super) type Counters = HashMap<String, DeviceStatus>;

/// Reads the text of /proc/net/dev (proc(5)).
pub(super) fn parse(text: &[u8]) -> Result<Counters, ProbeError> {
    InterfaceDeviceStatus::from_buf_read(text)
        .map(|status| status.0)
        .map_err(|error| ProbeError::parse("/proc/net/dev", &error))
}

/// Judges what has passed between two samples, each interface under its name. Interfaces that have
/// never carried anything are left out.
pub(super) fn judge(
    config: &Network,
    earlier: &Counters,
    now: &Counters,
    passed: Duration,
) -> Vec<(String, Finding)> {
    now.values()
        .filter(|device| !config.interfaces_exclude.matches(&device.name))
        .filter(|device| device.recv_bytes > 0 || device.sent_bytes > 0)
        .map(|device| {
            let before = earlier.get(&device.name);
            (
                device.name.clone(),
                interface(config, before, device, passed),
            )
        })
        .collect()
}

fn interface(
    config: &Network,
    before: Option<&DeviceStatus>,
    now: &DeviceStatus,
    passed: Duration,
) -> Finding {
    let seconds = passed.as_secs_f64();
    // An interface that is new, or whose counters began anew, has no rate yet.
    let per_s = |counter: fn(&DeviceStatus) -> u64| {
        let grown = counter(now).checked_sub(counter(before?))?;
        (seconds > 0.0).then(|| grown as f64 / seconds)
    };
    let mut metrics = vec![
        metric("received", now.recv_bytes as f64, "c"),
        metric("sent", now.sent_bytes as f64, "c"),
        metric("receive_errors", now.recv_errs as f64, "c"),
        metric("send_errors", now.sent_errs as f64, "c"),
        metric(
            "dropped",
            now.recv_drop.saturating_add(now.sent_drop) as f64,
            "c",
        ),
    ];
    let rates = (
        per_s(|device| device.recv_bytes),
        per_s(|device| device.sent_bytes),
        per_s(|device| device.recv_errs.saturating_add(device.sent_errs)),
    );
    let (Some(received), Some(sent), Some(errors)) = rates else {
        return Finding {
            state: config.errors_per_s.judge(0.0),
            text: "no rates yet".to_owned(),
            metrics,
        };
    };
    metrics.push(metric("received_per_s", received.round(), "B/s"));
    metrics.push(metric("sent_per_s", sent.round(), "B/s"));
    metrics.push(metric("errors_per_s", (errors * 100.0).round() / 100.0, ""));
    Finding {
        state: config.errors_per_s.judge(errors),
        text: format!(
            "{}/s in, {}/s out, {errors:.1} errors/s",
            bytes(received),
            bytes(sent)
        ),
        metrics,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and `as` saturates"
)]
fn bytes(value: f64) -> ByteSize {
    ByteSize(value as u64)
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::wire::Health;

    use super::*;
    use crate::check::finding::Thresholds;
    use crate::config::probe::Patterns;

    const HEAD: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
";

    fn config() -> Network {
        Network {
            errors_per_s: Thresholds {
                warning: Some(1.0),
                critical: Some(10.0),
            },
            interfaces_exclude: Patterns::new(vec!["lo".to_owned(), "veth*".to_owned()]),
        }
    }

    fn text(lines: &str) -> Counters {
        parse(format!("{HEAD}{lines}").as_bytes()).unwrap()
    }

    fn only(found: Vec<(String, Finding)>) -> (String, Finding) {
        let [one] = <[_; 1]>::try_from(found).unwrap();
        one
    }

    const EARLIER: &str = "    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0
  eth0: 1000000    4543    2    7    0     0          0         0   391642    3139    1    1    0     0       0          0
  sit0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
vethab1:      9       1    0    0    0     0          0         0        9       1    0    0    0     0       0          0
";

    #[test]
    fn rates_are_those_of_the_time_between() {
        let earlier = text(EARLIER);
        let now = text(
            "  eth0: 11485760   4543   12    7    0     0          0         0   493642    3139    6    1    0     0       0          0\n",
        );
        let found = judge(&config(), &earlier, &now, Duration::from_secs(10));
        let (name, found) = only(found);
        assert_eq!(name, "eth0");
        assert_eq!(found.state, Health::Warning);
        assert_eq!(found.text, "1.0 MiB/s in, 10.0 KiB/s out, 1.5 errors/s");
        assert_eq!(found.metrics[0], metric("received", 11_485_760.0, "c"));
        assert_eq!(found.metrics[4], metric("dropped", 8.0, "c"));
        assert_eq!(
            found.metrics[5],
            metric("received_per_s", 1_048_576.0, "B/s")
        );
    }

    #[test]
    fn new_interfaces_and_reset_counters_have_no_rates() {
        let now = text(EARLIER);
        for earlier in [
            Counters::new(),
            text(&EARLIER.replace("1000000", "2000000")),
        ] {
            let (_, found) = only(judge(&config(), &earlier, &now, Duration::from_secs(10)));
            assert_eq!((found.state, found.metrics.len()), (Health::Ok, 5));
            assert_eq!(found.text, "no rates yet");
        }
    }

    #[test]
    fn the_filter_and_unused_interfaces_leave_out_the_rest() {
        let now = text(EARLIER);
        let (name, _) = only(judge(&config(), &now, &now, Duration::ZERO));
        assert_eq!(name, "eth0");
    }
}
