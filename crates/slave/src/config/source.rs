//! Where connections come from: `source_addresses`, `source_ports`, `privileged_source_port` and
//! `interface` of `[connection]`.

use rollcall_os::diag::ports::PortRange;
use rollcall_os::outgoing::{Outgoing, ScopedAddress, is_interface};

use super::probe::Fault;

/// The keys as they stand in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    /// `source_addresses`
    pub(super) addresses: &'a [String],
    /// `source_ports`
    pub(super) ports: &'a str,
    /// `privileged_source_port`
    pub(super) privileged: bool,
    /// `interface`
    pub(super) interface: &'a str,
}

impl Raw<'_> {
    /// What is wrong with them, for these masters; `None` for one that is given by name.
    pub(super) fn faults(&self, masters: &[Option<ScopedAddress>]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (at, text) in self.addresses.iter().enumerate() {
            if let Err(message) = self.check_address(at, text, masters) {
                faults.push((format!("connection.source_addresses[{at}]"), message));
            }
        }
        let sources = self.sources();
        for (at, master) in masters.iter().enumerate() {
            let Some(master) = master else { continue };
            let fits = |source: &ScopedAddress| source.ip.is_ipv4() == master.ip.is_ipv4();
            if !sources.is_empty() && !sources.iter().any(fits) {
                faults.push((
                    format!("connection.masters[{at}]"),
                    format!("no address of source_addresses can reach {master}: add one of its family, or take this master out"),
                ));
            }
        }
        if let Err(message) = self.check_ports() {
            faults.push(("connection.source_ports".to_owned(), message));
        }
        if !self.interface.is_empty() && !is_interface(self.interface) {
            faults.push((
                "connection.interface".to_owned(),
                format!(
                    "{:?} can't be an interface: expected a name such as \"eth0\" (see `ip link`), or \"\"",
                    self.interface
                ),
            ));
        }
        faults
    }

    fn check_address(
        &self,
        at: usize,
        text: &str,
        masters: &[Option<ScopedAddress>],
    ) -> Result<(), String> {
        let source: ScopedAddress = text.parse().map_err(|error| format!("{error}"))?;
        if source.ip.is_unspecified() || source.ip.is_multicast() {
            return Err(format!(
                "{source} is no address to send from: give one of this host's (see `ip address`)"
            ));
        }
        if source.needs_scope() && self.interface.is_empty() {
            return Err(format!(
                "{source} is a link-local address: name its interface, as in \"{source}%eth0\""
            ));
        }
        if self.addresses[..at].iter().any(|earlier| earlier == text) {
            return Err(format!("{source} is listed twice"));
        }
        let fits = |master: &Option<ScopedAddress>| {
            master.as_ref().is_none_or(|master| {
                let is_near = source.ip.is_loopback() && !master.ip.is_loopback();
                master.ip.is_ipv4() == source.ip.is_ipv4() && !is_near
            })
        };
        if !masters.iter().any(fits) {
            return Err(format!(
                "no master can be reached from {source}: take it out, or add a master that can"
            ));
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), String> {
        if self.ports.is_empty() {
            return Ok(());
        }
        let range: PortRange = self.ports.parse().map_err(|error| format!("{error}"))?;
        if range.first == 0 {
            return Err(format!(
                "{range} begins with 0, which is no port: give 1 or more"
            ));
        }
        if self.privileged {
            return Err(format!(
                "{range} and privileged_source_port = true contradict each other: take one of them out"
            ));
        }
        Ok(())
    }

    fn sources(&self) -> Vec<ScopedAddress> {
        let parsed = self.addresses.iter().map(|text| text.parse());
        parsed.filter_map(Result::ok).collect()
    }

    /// What they come to, once they are known to be right.
    pub(super) fn resolve(&self) -> Outgoing {
        Outgoing {
            source_addresses: self.sources(),
            source_ports: self.ports.parse().ok(),
            privileged: self.privileged,
            interface: (!self.interface.is_empty()).then(|| self.interface.to_owned()),
        }
    }
}
