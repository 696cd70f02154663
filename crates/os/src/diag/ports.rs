//! Local ports: which ones connections may take.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::sysctl;

const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
const UNPRIVILEGED: &str = "net.ipv4.ip_unprivileged_port_start";
/// The kernel's own, where the parameter is missing (ip(7)).
const UNPRIVILEGED_DEFAULT: u16 = 1024;
/// Of a slave's ports one of so many is left alone, and no fewer than [`RESERVE_MIN`].
const RESERVE_SHARE: u32 = 10;
const RESERVE_MIN: u32 = 2;

/// What of `usable` ports, those of all its source addresses, a slave in per-message mode may hold for a
/// destination at a time, connections in TIME_WAIT included: its budget. The reserve is for the pooled
/// connection that it falls back to, and for others.
pub fn budget_of(usable: u32) -> u32 {
    let reserve = (usable / RESERVE_SHARE).max(RESERVE_MIN);
    usable.saturating_sub(reserve).max(1)
}

/// Ports from `first` to `last`, with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest; not below `first`.
    pub last: u16,
}

/// Text that is no port range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad port range {0:?}: expected two ports, the lower one first, such as \"40000-41000\"")]
pub struct BadRange(String);

impl PortRange {
    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// How many they are.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// Those of both; `None` if there are none.
    pub fn common(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }

    /// All of them in turn.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = BadRange;

    /// "40000-41000", or as the kernel writes it, with a tab.
    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        let (first, last) = text
            .trim()
            .split_once(|between: char| between == '-' || between.is_whitespace())
            .ok_or_else(bad)?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| bad());
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

/// The range that the kernel takes the source ports of connections from
/// (net.ipv4.ip_local_port_range, for IPv6 as well; ip(7)).
///
/// # Errors
/// If /proc does not tell it.
pub fn local_port_range() -> io::Result<PortRange> {
    let value = sysctl::read(RANGE).ok_or_else(|| missing(RANGE))?;
    value
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{RANGE}: {error}")))
}

/// The ports that the kernel gives to nobody who does not name them
/// (net.ipv4.ip_local_reserved_ports), as ranges in ascending order.
///
/// # Errors
/// If /proc does not tell them.
pub fn reserved_ports() -> io::Result<Vec<PortRange>> {
    let value = sysctl::read(RESERVED).ok_or_else(|| missing(RESERVED))?;
    port_list(&value)
}

/// A list of ports and ranges of them as the kernel prints it: "8080,9000-9010".
///
/// # Errors
/// `InvalidData` if it is none.
pub fn port_list(text: &str) -> io::Result<Vec<PortRange>> {
    let ranges = text.split(',').filter(|part| !part.trim().is_empty());
    ranges.map(|part| one_or_more(part.trim())).collect()
}

/// The lowest port that needs no privilege (net.ipv4.ip_unprivileged_port_start).
pub fn unprivileged_from() -> u16 {
    sysctl::read(UNPRIVILEGED)
        .and_then(|value| value.parse().ok())
        .unwrap_or(UNPRIVILEGED_DEFAULT)
}

/// "8080" or "8000-8010", as the kernel prints a list of ports.
fn one_or_more(text: &str) -> io::Result<PortRange> {
    let one = text.parse().map(|port| PortRange {
        first: port,
        last: port,
    });
    one.or_else(|_| text.parse())
        .map_err(|error: BadRange| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn missing(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("can't read {name} under /proc/sys"),
    )
}

/// The ports that connections from one address to one destination may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    range: PortRange,
    reserved: Vec<PortRange>,
    /// The one in the range that the kernel never comes to.
    skipped: Option<u16>,
}

impl LocalPorts {
    /// Those of this host: the kernel's range without the reserved ports. Of an odd number of ports
    /// the kernel leaves the last one out, because it searches every second port first
    /// (`__inet_hash_connect` in net/ipv4/inet_hashtables.c).
    ///
    /// # Errors
    /// If /proc does not tell them.
    pub fn read() -> io::Result<Self> {
        let range = local_port_range()?;
        let is_odd = range.count() % 2 == 1 && range.count() > 1;
        Ok(Self {
            skipped: is_odd.then_some(range.last),
            ..Self::new(range, reserved_ports()?)
        })
    }

    /// `range` without `reserved`: all of them can be had, as where each is asked for by its number.
    pub fn new(range: PortRange, reserved: Vec<PortRange>) -> Self {
        Self {
            range,
            reserved,
            skipped: None,
        }
    }

    /// Those of them that lie in `range`, as IP_LOCAL_PORT_RANGE narrows it (ip(7), Linux 6.3): a
    /// range that has none of the host's is ignored by the kernel, and so it is here.
    #[must_use]
    pub fn narrowed(self, range: PortRange) -> Self {
        Self {
            range: self.range.common(range).unwrap_or(self.range),
            reserved: self.reserved,
            skipped: None,
        }
    }

    /// From where to where.
    pub const fn range(&self) -> PortRange {
        self.range
    }

    /// How many ports in the range are reserved.
    pub fn reserved(&self) -> u32 {
        // The kernel's list has no port twice.
        let inside = self
            .reserved
            .iter()
            .filter_map(|one| one.common(self.range));
        inside.map(PortRange::count).sum()
    }

    /// How many connections to one destination they are good for.
    pub fn usable(&self) -> u32 {
        let skipped = self.skipped.filter(|port| !self.is_reserved(*port));
        self.range.count() - self.reserved() - u32::from(skipped.is_some())
    }

    /// Whether a connection may be given this one.
    pub fn contains(&self, port: u16) -> bool {
        self.range.contains(port) && !self.is_reserved(port) && self.skipped != Some(port)
    }

    fn is_reserved(&self, port: u16) -> bool {
        self.reserved.iter().any(|range| range.contains(port))
    }
}

impl fmt::Display for LocalPorts {
    /// "32768-60999", and what is reserved in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.range)?;
        match self.reserved() {
            0 => Ok(()),
            count => write!(f, " less {count} reserved"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn ranges_are_read_as_people_and_the_kernel_write_them() {
        assert_eq!("40000-41000".parse(), Ok(range(40_000, 41_000)));
        assert_eq!("32768\t60999\n".parse(), Ok(range(32_768, 60_999)));
        assert_eq!("7-7".parse(), Ok(range(7, 7)));
        for bad in ["", "5", "9-8", "1-70000", "a-b", "1-2-3"] {
            let error = bad.parse::<PortRange>().unwrap_err();
            assert!(error.to_string().contains("40000-41000"), "{bad}");
        }
    }

    #[test]
    fn the_reserve_is_a_tenth_and_a_few_ports_are_enough_to_begin() {
        let cases = [
            (28_232, 25_409),
            (100, 90),
            (20, 18),
            (10, 8),
            (3, 1),
            (1, 1),
        ];
        for (usable, budget) in cases {
            assert_eq!(budget_of(usable), budget, "of {usable}");
        }
    }

    #[test]
    fn reserved_ports_are_not_usable() {
        let ports = LocalPorts::new(
            range(100, 199),
            vec![range(1, 100), range(150, 159), range(300, 301)],
        );
        assert_eq!((ports.reserved(), ports.usable()), (11, 89));
        assert!(!ports.contains(100) && ports.contains(101) && !ports.contains(155));
        assert!(!ports.contains(200));
        assert_eq!(ports.to_string(), "100-199 less 11 reserved");
        let narrow = ports.clone().narrowed(range(155, 500));
        assert_eq!((narrow.range(), narrow.usable()), (range(155, 199), 40));
        // Outside of the host's it narrows nothing.
        assert_eq!(ports.clone().narrowed(range(1, 50)), ports);
    }

    #[test]
    fn the_port_that_the_kernel_skips_is_not_usable() {
        let odd = |reserved| LocalPorts {
            skipped: Some(104),
            ..LocalPorts::new(range(100, 104), reserved)
        };
        assert_eq!(odd(vec![]).usable(), 4);
        assert!(odd(vec![]).contains(103) && !odd(vec![]).contains(104));
        // Not counted twice.
        assert_eq!(odd(vec![range(104, 104)]).usable(), 4);
    }

    #[test]
    fn the_hosts_ports_are_known() {
        let ports = LocalPorts::read().unwrap();
        assert_eq!(ports.range(), local_port_range().unwrap());
        assert!(ports.usable() > 0 && ports.usable() <= ports.range().count());
        assert!(unprivileged_from() <= UNPRIVILEGED_DEFAULT);
    }

    #[test]
    fn a_list_of_ports_is_read() {
        assert_eq!(one_or_more("8080").unwrap(), range(8080, 8080));
        assert_eq!(one_or_more("1-3").unwrap(), range(1, 3));
        assert!(one_or_more("x").is_err());
    }
}
